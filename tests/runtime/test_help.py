"""--help of every command: a page that a user can work from."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing
from collections.abc import Callable

import pytest
from bases import command

import data
import evaluate
import lora
import sample
import train_class
import train_controlnet
import train_inpaint
from benchmarks import bench
from checkpoints import controlnet_export, convert
from dataset import doctor
from runtime.cli import parse
from tiny import demo, judge

# How a command is called -> what runs it, its flags.
PAGES: dict[str, tuple[Callable[[], None], type]] = {
    "train_class.py": (train_class.main, train_class.Config),
    "train_inpaint.py": (train_inpaint.main, train_inpaint.Config),
    "train_controlnet.py": (train_controlnet.main, train_controlnet.Config),
    "sample.py": (sample.main, sample.Config),
    "evaluate.py": (evaluate.main, evaluate.Config),
    "data.py doctor": (data.main, doctor.Doctor),
    "data.py demo": (data.main, demo.Demo),
    "lora.py convert": (lora.main, convert.Convert),
    "-m checkpoints.controlnet_export": (controlnet_export.main, controlnet_export.Config),
    "-m benchmarks.bench": (bench.main, bench.Config),
    "-m tiny.judge": (judge.main, judge.Config),
}
# What numbers can be: a help text says which.
UNITS = re.compile("pixels|images|damages|photos|epochs|passes|steps|batches|share|scale|seed|strength|rate|"
                   "decay|rank|alpha|norm|deviation|processes|trainings|tokens|vectors|judges|resamplings|noise|runs|"
                   "variants|seconds|GiB")


def page(name: str, monkeypatch: pytest.MonkeyPatch, flag: str = "--help-all") -> str:
    """The page of a command, no line of it broken."""
    monkeypatch.setenv("COLUMNS", "1000")
    words = name.split()[1:] if name.startswith("data.py") else []
    outcome = command(PAGES[name][0], *words, flag)
    assert outcome.status == 0 and outcome.err == ""
    return outcome.out


def entries(text: str) -> dict[str, str]:
    """Flag -> what is said of it, beside it or on the next line."""
    return dict(re.findall(r"^  (--[\w-]+).*?(?:  +|\n {9,})(\S.*)$", text, re.M))


@pytest.mark.parametrize("name", PAGES)
def test_every_flag_is_in_its_group_with_its_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, cls = page(name, monkeypatch), PAGES[name][1]
    said, hints = entries(text), typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        assert f"\n{field.metadata['group']}:\n" in text
        if field.metadata["positional"]:
            continue
        entry = said["--" + field.name.rstrip("_").replace("_", "-")]
        assert entry.count("(default: ") == (field.default is not ...), entry
        if {int, float} & {hints[field.name], *typing.get_args(hints[field.name])}:
            assert UNITS.search(entry), f"a number of what? {entry}"


@pytest.mark.parametrize("name", PAGES)
def test_the_short_page_has_what_most_users_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    short, whole = page(name, monkeypatch, "--help"), page(name, monkeypatch)
    flags = set(entries(short)) - {"--config", "--help-all"}
    assert entries(short).items() <= entries(whole).items() or "show this page" in short
    assert "--help-all" in short and len(flags) <= 16
    assert (len(flags) < len(entries(whole)) - 2) == (len(dataclasses.fields(PAGES[name][1])) > 12)
    groups = set(re.findall(r"^(\w+):$", short, re.M))
    assert groups <= set(re.findall(r"^(\w+):$", whole, re.M))


@pytest.mark.parametrize("columns", [60, 80, 110])
@pytest.mark.parametrize("name", PAGES)
def test_what_can_be_copied_is_not_broken(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = page(name, monkeypatch)
    monkeypatch.setenv("COLUMNS", str(columns))
    words = name.split()[1:] if name.startswith("data.py") else []
    narrow = command(PAGES[name][0], *words, "--help-all").out
    assert set(narrow.split()) <= set(whole.split())


@pytest.mark.parametrize("name", PAGES)
def test_what_must_be_given_comes_first(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(name, monkeypatch)
    needed = [field for field in dataclasses.fields(PAGES[name][1]) if field.default is ...]
    usage, first = text.splitlines()[0], re.search(r"^(\w+):$", text, re.M)
    for field in needed:
        words = field.metadata["choices"] or (field.name.upper(), "--" + field.name.replace("_", "-"))
        assert any(word in usage for word in words)
    assert not needed or first[1] in {field.metadata["group"] for field in needed}


@pytest.mark.parametrize("name", PAGES)
def test_its_examples_can_be_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line that calls one of our commands, on any page, is understood by that command."""
    text = page(name, monkeypatch).replace("\\\n", " ")
    assert re.search("^examples?:\n  python ", text, re.M)
    calls = re.findall(r"(?:^  |Then: )python (.*)$", text.partition("\nexample")[2], re.M)
    ours = 0
    for call in calls:
        called = next(known for known in PAGES if call.startswith(known))
        words = shlex.split(call, comments=True)[2 if called.startswith("-m") else 1:]
        parse(PAGES[called][1], "", argv=words)
        ours += called == name
    assert ours
