"""--config: flags from a TOML or JSON file, or from a run; the command line wins."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bases import Place, command
from flag_example import Example, example

import sample
import train_class

TOML = 'needed = "x"\ncount = 4\nrate = 1\nlimit = 2\nnames = ["c"]\nquick = false\n"way-to" = "down"\n'
NEEDS_TOML = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@NEEDS_TOML
def test_toml() -> None:
    Path("flags.toml").write_text(TOML)
    assert example("--config", "flags.toml") == Example("x", 4, 1, 2, ["c"], False, "down")


def test_json_and_the_command_line_wins() -> None:
    Path("flags.json").write_text(json.dumps({"needed": "x", "count": 4, "names": "c", "way_to": "down"}))
    assert example("--config", "flags.json", "--count", "5") == Example(
        "x", 5, names=["c"], way_to="down")


WRONG = {
    '{"need": 1, "needed": "x"}': "need is no flag of this command; did you mean needed?",
    '{"needed": 1}': "needed 1 is not what the flag takes",
    '{"needed": "x", "count": 10}': "count 10 is not",
    '{"needed": "x", "count": 1.5}': "count 1.5 is not",
    '{"needed": "x", "rate": true}': "rate True is not",
    '{"needed": "x", "names": ["a", 1]}': "names ['a', 1] is not",
    '{"needed": "x", "sizes": [3, 10]}': "sizes [3, 10] is not",
    '{"needed": "x", "way_to": "left"}': "way_to 'left' is not",
    '{"needed": "x"': "cannot be read", "[" * 100_000: "cannot be read", "[1]": "not a table of flags",
    "\xff": "cannot be read", "{}": "required: --needed",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_in_a_file(text: str) -> None:
    Path("flags.json").write_bytes(text.encode("latin-1"))
    expected = ["--config flags.json"] if text != "{}" else []
    assert command(lambda: example("--config", "flags.json")).failed_with(WRONG[text], *expected)


@NEEDS_TOML
def test_toml_that_is_none() -> None:
    Path("flags.toml").write_text("count = ")
    assert command(lambda: example("--config", "flags.toml")).failed_with("flags.toml", "epochs = 100")


def test_toml_before_python_3_11(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    Path("flags.toml").write_text(TOML)
    assert command(lambda: example("--config", "flags.toml")).failed_with("needs Python 3.11", "JSON")


def test_no_such_file() -> None:
    assert command(lambda: example("--config", "none.toml")).failed_with("none.toml", "give a TOML")
    Path("folder").mkdir()
    assert command(lambda: example("--config", "folder")).failed_with("folder/config.json is not there")


def test_a_runs_own_config_repeats_it(place: Place) -> None:
    """From the run folder or its config.json; --restart in the first command does not delete it again."""
    flags = ("--data", place.data, "--base", place.base, "--resolution", 64, "--preview-every", 0,
             "--max-steps", 1, "--rank", 2, "--latent-variants", 1, "--restart")
    assert command(train_class.main, *flags, "--out", "run").status == 0
    weights = Path("run/adapter.safetensors").read_bytes()
    again = command(train_class.main, "--config", "run")
    assert again.status == 0 and "run: going on after step 1" in again.err
    outcome = command(train_class.main, "--config", "run/config.json", "--out", "other", "--seed", 7)
    assert outcome.status == 0 and Path("run/adapter.safetensors").read_bytes() == weights
    settings = json.loads(Path("other/config.json").read_text())
    assert settings["rank"] == 2 and settings["seed"] == 7 and not settings["restart"]
    assert command(train_class.main, "--config", "run", "--rank", 3).failed_with("--rank was 2, is 3")
    wrong = command(sample.main, "--ckpt", "run", "--config", "run")
    assert wrong.failed_with("--config run: ", "is no flag of this command; is the file for another one?")
