"""README.md and docs/: short, no dead link, commands that can be given, numbers as they were measured."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from bases import ROOT, command

import evaluate
import sample
import train_class
import train_controlnet
import train_inpaint
from benchmarks import bench, tables
from checkpoints import controlnet_export, convert
from dataset import doctor
from runtime.cli import parse
from tiny import demo

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FLAGS = {"train_class.py": train_class.Config, "train_inpaint.py": train_inpaint.Config,
         "train_controlnet.py": train_controlnet.Config, "sample.py": sample.Config,
         "evaluate.py": evaluate.Config, "data.py doctor": doctor.Doctor, "data.py demo": demo.Demo,
         "lora.py convert": convert.Convert, "-m checkpoints.controlnet_export": controlnet_export.Config,
         "-m benchmarks.bench": bench.Config}


def words(text: str) -> str:
    """Text without emphasis and line breaks, to look for what may be wrapped."""
    return " ".join(text.replace("**", "").split())


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in (ROOT / "docs").iterdir()
            if page.suffix in (".md", ".ipynb") and f"(docs/{page.name})" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link.partition("#")[0]).exists(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_given(page: Path) -> None:
    """Every line of a code block that calls one of our commands is understood by it."""
    blocks = re.findall(r"^```\n(.*?)^```", page.read_text(), re.M | re.S)
    calls = [call for block in blocks for call in re.findall(r"python ((?:\w+\.py|-m \w+\.\w+).*)$",
                                                            block.replace("\\\n", " "), re.M)]
    for call in calls:
        called = next((name for name in FLAGS if call.startswith(name)), None)
        if called and "..." not in call:
            given = shlex.split(call, comments=True)[2 if called.startswith("-m") else 1:]
            assert parse(FLAGS[called], "", argv=given)


@pytest.mark.parametrize("name", tables.TABLES)
def test_tables_hold_what_was_measured(name: str) -> None:
    """The rows made from benchmarks/*.json stand in the page, digit by digit."""
    page = words((ROOT / f"docs/{name}.md").read_text())
    for table in tables.TABLES[name]:
        rows = list(table())
        assert rows and [row for row in rows if words(row) not in page] == [], table.__name__


def test_a_wrong_digit_is_seen() -> None:
    row = next(iter(tables.ablations()))
    page = words((ROOT / "docs/recipe.md").read_text())
    wrong = re.sub(r"\d %", lambda digit: f"{(int(digit[0][0]) + 1) % 10} %", row, count=1)
    assert words(row) in page and wrong != row and words(wrong) not in page


def test_the_tables_can_be_printed() -> None:
    outcome = command(tables.main)
    assert outcome.status == 0
    assert f"docs/recipe.md, ablations:\n{next(iter(tables.ablations()))}\n" in outcome.out


def test_readmes_time_on_a_t4_is_what_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data that are not on this machine, so 83 photos are assumed."""
    monkeypatch.chdir(tmp_path)
    said = command(train_class.main, "--data", "DS-MVTec/bottle", "--preset", "better", "--plan", "T4")
    memory, there = re.search(r"memory: (\S+) GiB of (\d+)", said.out).groups()
    time = re.search(r"time: (\d+ to \d+ \w+) \(", said.out)[1]
    readme = words((ROOT / "README.md").read_text())
    assert f"needs {memory} GiB of its {there} and {time} for 83 photos" in readme
