"""Short runs of the commands that tests of several rooms need; conftest.py makes some of them fixtures."""

from __future__ import annotations

import re
from pathlib import Path

from bases import Outcome, Place, command, rows
from safetensors.torch import load_file
from torch import Tensor

import lora
import sample
import train_class
import train_controlnet
from evaluation.networks import LITE

DAMAGES = ["broken_large", "broken_small", "contamination"]

# Runs that tests kill and run again: of all trainers with the cache of latents, EMA and previews.
KILLED = ["--resolution", 64, "--epochs", 4, "--batch-size", 2, "--accumulate", 2, "--save-every", 1,
          "--ema", 0.9, "--preview-every", 2, "--preview-steps", 1, "--latent-variants", 2, "--out", "run",
          "--max-samples-per-damage-type", 2]
KILLED_SCRIPTS = {
    "train_class": [*KILLED, "--class-dropout", 0.2],
    "train_inpaint": [*KILLED, "--clip", 0.1],
    "train_controlnet": [*KILLED, "--control-rank", 4],
    "sample": ["--per-class", 3, "--steps", 2, "--out", "run"],
    "evaluate": ["--features", LITE, "--judge", LITE, "--folds", 2, "--bootstrap", 10, "--out", "run"],
}
CACHES = r"run/features/.*"  # how features lie in files depends on where a run was stopped


def train_stage_a(place: Place, out: Path, *arguments: object) -> Path:
    """A class checkpoint in `out`."""
    outcome = command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 2, "--lr", 0.01, "--out", out, *arguments)
    assert outcome.status == 0, outcome
    return out


def train_lora(place: Place, out: Path, *flags: object) -> Path:
    """A class checkpoint in `out` whose LoRA and damage types differ clearly from those of the start."""
    return train_stage_a(place, out, "--max-steps", 4, "--lr", 0.05, "--class-dropout", 0.2, "--rank", 4,
                         "--tokens-per-class", 3, "--init-std", 1, *flags)


def train_control(place: Place, stage_a: Path, *arguments: object) -> Outcome:
    """A whole ControlNet, unless a later flag says otherwise."""
    return command(train_controlnet.main, "--data", place.data, "--class-ckpt", stage_a, "--preview-every", 0,
                   "--accumulate", 1, "--lr", 1e-3, "--no-validate", "--control-rank", 0, *arguments)


def trained_control(place: Place, stage_a: Path, *arguments: object) -> dict[str, Tensor]:
    """The tensors of such a run in ./run, which must succeed."""
    outcome = train_control(place, stage_a, "--out", "run", *arguments)
    assert outcome.status == 0, outcome
    return load_file("run/adapter.safetensors")


def paint(run: Path, photos: Path, *arguments: object) -> Outcome:
    """sample.py with a checkpoint of train_inpaint.py."""
    return command(sample.main, "--ckpt", run, "--images", photos, "--steps", 3, "--per-class", 3, *arguments)


def convert(*arguments: object) -> Outcome:
    """lora.py convert."""
    return command(lora.main, "convert", *arguments)


def arguments_of(script: str, place: Place, undisturbed: Path) -> list[object]:
    """The command line of a script in KILLED_SCRIPTS; `undisturbed`: the folder of train_class.py's run."""
    run = undisturbed / "run"
    own = {"evaluate": ["--real", place.data, "--fake", place.data],
           "sample": ["--ckpt", run, "--base", place.base],
           "train_controlnet": ["--data", place.data, "--class-ckpt", run, "--base", place.base]}
    return [*KILLED_SCRIPTS[script], *own.get(script, ["--data", place.data, "--base", place.base])]


def contents(folder: Path) -> dict[str, object]:
    """What a command left, by file name; of rows all but how long steps took and the folder's own place."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.name == "metrics.jsonl" or "cut_and_paste" in name and file.suffix == ".jsonl":
            found[name] = [{k: v for k, v in row.items() if k not in ("seconds", "photo")}
                           for row in rows(file)]
        elif file.is_file() and not re.fullmatch(CACHES, name):
            found[name] = file.read_bytes()
    return found
