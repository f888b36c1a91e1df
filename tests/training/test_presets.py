"""--preset: rows of flags in training, and what a checkpoint says of how it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import ROOT, Place, command, rows
from runs import train_control

import sample
import train_class
import train_inpaint
from checkpoints.adapter import read_adapter
from checkpoints.metadata import Header
from checkpoints.presets import PRESETS

SMALL = ("--resolution", 64, "--preview-every", 0, "--max-steps", 1, "--latent-variants", 1, "--rank", 2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(place: Place, *flags: object, main: object = train_class.main) -> tuple[Header, str]:
    """The header of a run of one step in ./run, and what was said."""
    outcome = command(main, "--data", place.data, "--base", place.base, "--out", "run", *SMALL, *flags)
    assert outcome.status == 0, outcome
    return read_adapter(Path("run/adapter.safetensors"))[1], outcome.err


def drawn(*flags: object) -> tuple[dict, str]:
    """The first row of the images drawn from ./run, and what was said."""
    outcome = command(sample.main, "--ckpt", "run", "--steps", 2, "--per-class", 1, *flags)
    assert outcome.status == 0, outcome
    return rows(Path("generated/samples.jsonl"))[0], outcome.err


def test_the_recipe_says_what_is_better_and_draws_plainly(place: Place) -> None:
    header, said = train(place)
    assert "preset recipe: the defaults. --preset better (--tokens-per-class 4" in said.splitlines()[0]
    assert header.drawing == {} and header.tokens_per_class == 1 and header.class_dropout == 0
    row, said = drawn()
    assert (row["guidance"], row["eta"]) == (1, 0) and "drawn plainly, as the recipe" in said
    assert "drawn" not in drawn("--out", "generated", "--eta", 0)[1]


def test_a_preset_on_the_command_line_wins_over_the_flags_of_a_file(place: Place) -> None:
    """With its flags; what the file says besides stays."""
    train(place, "--preset", "better", "--lr", 2e-4)
    for name, tokens, dropout in (("recipe", 1, 0), ("better", 4, 0.1)):
        outcome = command(train_class.main, "--config", "run", "--out", name, "--preset", name)
        assert outcome.status == 0
        header = read_adapter(Path(name, "adapter.safetensors"))[1]
        assert (header.tokens_per_class, header.class_dropout) == (tokens, dropout)
        assert (header.config["preset"], header.config["lr"], header.rank) == (name, 2e-4, 2)
    outcome = command(train_class.main, "--config", "recipe", "--out", "third", "--preset", "better",
                      "--tokens-per-class", 2)
    header = read_adapter(Path("third/adapter.safetensors"))[1]
    assert outcome.status == 0 and (header.tokens_per_class, header.class_dropout) == (2, 0.1)
    assert "preset better: --class-dropout 0.1" in outcome.err


def test_better_is_recorded_and_drawn_so(place: Place) -> None:
    header, said = train(place, "--preset", "better")
    assert "preset better: --tokens-per-class 4 --class-dropout 0.1" in said
    assert (header.tokens_per_class, header.class_dropout) == (4, 0.1)
    assert header.drawing == {"guidance": 2, "eta": 1}
    row, said = drawn()
    assert (row["guidance"], row["eta"]) == (2, 1)
    assert "drawn as the checkpoint says: --guidance 2 --eta 1" in said
    plain = command(sample.main, "--ckpt", "run", "--steps", 2, "--per-class", 1, "--preset", "recipe")
    assert plain.failed_with("generated/samples.jsonl", "eta was 1.0, is 0.0", "guidance was 2.0, is 1.0")


def test_flags_beside_it_win(place: Place) -> None:
    header, said = train(place, "--preset", "better", "--class-dropout", 0)
    assert "preset better: --tokens-per-class 4\n" in said
    assert header.drawing == {"eta": 1}, "there is no null class to guide from"
    row, said = drawn("--sampler", "dpm++")
    assert row["eta"] == 0 and "drawn as" not in said, "that sampler has no eta"
    row, said = drawn("--out", "generated", "--sampler", "dpm++", "--guidance", 1)
    assert "drawn" not in said


def test_a_preset_in_a_config_file_and_flags_beside_it(place: Place) -> None:
    Path("flags.json").write_text('{"preset": "better", "tokens_per_class": 2}')
    header, _ = train(place, "--config", "flags.json")
    assert (header.tokens_per_class, header.class_dropout) == (2, 0.1)


def test_guided_previews_are_how_it_is_drawn(place: Place) -> None:
    header, _ = train(place, "--class-dropout", 0.2, "--preview-guidance", 3)
    assert header.drawing == {"guidance": 3} and drawn()[0]["guidance"] == 3


def plan(place: Place, *flags: object) -> dict:
    """What a training would be, as --plan --json says."""
    outcome = command(train_class.main, "--data", place.data, "--plan", "T4", "--json", *flags)
    assert outcome.status == 0, outcome
    return json.loads(outcome.out) | {"said": outcome.err}


def test_the_tiny_base_implies_its_preset(place: Place) -> None:
    found = plan(place, "--base", "tiny")
    assert (found["resolution"], found["batch_size"]) == (128, 8)
    assert "preset tiny: --resolution 128 --batch-size 8 --lr 0.002 --embedding-lr 0.01" in found["said"]
    found = plan(place, "--base", "tiny", "--resolution", 64)
    assert (found["resolution"], found["batch_size"]) == (64, 8)
    found = plan(place, "--base", "tiny", "--preset", "recipe")
    assert (found["resolution"], found["batch_size"], found["said"]) == (512, 4, "")


def test_a_run_keeps_the_preset_that_it_began_with(place: Place) -> None:
    """A tiny run of the time before presets goes on by the same command."""
    flags = ("--base", "tiny", "--out", "run")
    Path("run").mkdir()
    Path("run/config.json").write_text('{"base": "tiny", "resolution": 512}')
    assert plan(place, *flags)["resolution"] == 512
    assert plan(place, *flags, "--restart")["resolution"] == 128
    Path("run/config.json").write_text('{"preset": "tiny"}')
    assert plan(place, "--out", "run")["resolution"] == 128
    for damaged in ('{"preset"', '{"preset": ["x"]}', "[]"):
        Path("run/config.json").write_text(damaged)
        assert plan(place, "--out", "run")["resolution"] == 512


def test_inpainting_and_control_have_their_own_rows(place: Place, inpaint_run: Path) -> None:
    base = Place(inpaint_run.parent / "base", place.data)
    header, said = train(base, "--preset", "better", main=train_inpaint.main)
    assert header.drawing == {"guidance": 2} and "preset better: --tokens-per-class 4" in said
    train(place, "--preset", "better", "--restart")
    outcome = train_control(place, Path("run"), "--out", "control", "--max-steps", 1, "--preset", "better")
    assert outcome.status == 0, outcome
    assert read_adapter(Path("control/adapter.safetensors"))[1].drawing == {"eta": 1, "mask_guidance": 2}
    outcome = train_control(place, Path("run"), "--out", "plain", "--max-steps", 1)
    assert "mask-guidance 2) on the embedded base" in outcome.err
    assert read_adapter(Path("plain/adapter.safetensors"))[1].drawing == {}


def test_presets_hold_what_was_measured() -> None:
    """The numbers beside --preset better are those of benchmarks/*.json."""
    def right(name: str, arm: str) -> tuple[int, int]:
        found = json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())["rows"]
        own = [row for row in found if row["arm"] == arm]
        return sum(row["correct"] for row in own), sum(row["total"] for row in own)

    measured = {kind: row.measured for kind, row in PRESETS["better"].items()}
    shares = [100 * correct / total
              for correct, total in (right("preset", "better"), right("preset", "recipe"))]
    assert [f"{share:.1f} %" for share in shares] == [
        word + " %" for word in measured["class"].replace(",", "").split() if "." in word]
    correct, total = right("defect_weight", "weight 0")
    assert f"{correct} of {total} images" in measured["inpaint"]
    found = json.loads((ROOT / "benchmarks/controlnet.json").read_text())["rows"]
    overlap = {row["arm"]: row["iou"] for row in found}
    for arm in ("rank 16", "rank 16, --mask-guidance 2"):
        assert f"by {overlap[arm]['mean']:.2f}" in measured["control"]
