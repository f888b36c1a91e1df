"""What sample.py --select is worth on the demo product: images right by an independent classifier, yield,
copies and time, without it and at each level.

Strategy A is trained as in the ablations, control over it; inpaint paints into other undamaged bottles. The
levels share a run and its first drawings. The classifier (tiny/judge.py) learnt from 2,000 other drawn
bottles and shares no network with the selection. What is in the work folder is used again, so a stopped
command goes on; time is of folders that were drawn in one go.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.ablation import TRAIN
from benchmarks.timing import command, record
from dataset.layouts import Photo
from evaluation.features import read_squares
from evaluation.memorisation import COPY, Space, orientations
from evaluation.metrics import wilson
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import read_rows
from sampling.selection import LEVELS, OFF
from tiny.bottles import CLASSES
from tiny.judge import SIZE, classified, load_or_train

RUN = "--base tiny --preview-every 0 --save-every 20"
# strategy: (how it is trained, how it draws)
STRATEGIES = {"class": (f"train_class.py {TRAIN}", "--guidance 3 --steps 50 --eta 1 --batch-size 1"),
              "inpaint": (f"train_inpaint.py --epochs 40 {RUN}", "--steps 25 --batch-size 1"),
              "control": (f"train_controlnet.py --epochs 60 {RUN}", "--steps 25 --batch-size 1")}


@dataclass
class Config:
    """The command line of benchmarks.selection."""

    strategies: list[str] = flag(list(STRATEGIES), "which to measure", choices=tuple(STRATEGIES))
    levels: list[str] = flag([OFF, *LEVELS], "levels of --select to measure", choices=(OFF, *LEVELS))
    seeds: list[int] = flag([42, 43, 44], "seeds of training and drawing")
    per_class: int = flag(25, "images a class", minimum=1)
    work: str = flag("/tmp/selection", "folder for data, runs and images; what is there is used again")
    out: str = flag("benchmarks/selection.json", "where the result goes")


def photos_in(folder: Path) -> list[Photo]:
    """The images of a folder, by class."""
    return [Photo(file, None, None, "", name) for name in CLASSES
            for file in sorted((folder / "image" / name).glob("*.png"))]


def copies(data: Path, images: list[Photo]) -> int:
    """How many images are at most half the usual distance from a photo, in pixels, in any orientation."""
    training, drawn = (read_squares(photos, 32).flatten(1).numpy() for photos in (photos_in(data), images))
    return int((Space(orientations(training), None).nearness(drawn)[0] <= COPY).sum())


def train(work: Path, strategy: str, seed: int) -> Path:
    """The strategy's run folder, trained unless it is there already."""
    run = work / f"run-{strategy}-{seed}"
    if not (run / "adapter.safetensors").exists():
        script, *flags = shlex.split(STRATEGIES[strategy][0])
        below = ["--class-ckpt", train(work, "class", seed)] if strategy == "control" else []
        command(script, "--data", work / "bottle", "--out", run, "--seed", seed, *below, *flags)
    return run


def measure(classifier: nn.Module, config: Config, strategy: str, seed: int, level: str) -> dict[str, Any]:
    """Train, unless there is a run already, and draw at one level."""
    work = Path(config.work)
    data, run, out = work / "bottle", train(work, strategy, seed), work / f"{strategy}-{level}-{seed}"
    photos = ["--images", work / "others/image/good"] if strategy == "inpaint" else []
    whole = not out.exists()
    seconds = command("sample.py", "--ckpt", run, *photos, "--out", out, "--seed", seed, "--per-class",
                      config.per_class, "--select", level, *shlex.split(STRATEGIES[strategy][1]))
    images, thrown = photos_in(out), read_rows(out / "rejected/samples.jsonl")
    label = torch.tensor([CLASSES.index(photo.damage) for photo in images])
    table = classified(classifier, read_squares(images, SIZE), label)
    right, kept = int(table.trace()), len(images)
    return {"strategy": strategy, "level": level, "seed": seed, "asked": config.per_class * len(CLASSES),
            "kept": kept, "drawn": kept + len(thrown), "right": right, "interval": wilson(right, kept),
            "confusion": table.tolist(), "copies": copies(data, images),
            "thrown_away": Counter(key for row in thrown for key in row["failed"]),
            "seconds_a_kept_image": round(seconds / kept, 2) if whole else None}


def main() -> None:
    """Measure each strategy, seed and level; rows that are in the work folder already are kept."""
    config = parse(Config, __doc__, "", program="-m benchmarks.selection")
    work, log = Path(config.work), Path(config.work) / f"rows-{config.per_class}.json"
    for seed, name in enumerate(("bottle", "others")):
        if not (work / name).exists():
            command("data.py", "demo", work / name, "--per-class", 20, "--seed", seed)
    rows = json.loads(log.read_text()) if log.exists() else []
    classifier = load_or_train(500, work / "judge.safetensors")
    for strategy, seed, level in itertools.product(config.strategies, config.seeds, config.levels):
        if not any((row["strategy"], row["seed"], row["level"]) == (strategy, seed, level) for row in rows):
            rows.append(measure(classifier, config, strategy, seed, level))
            log.write_text(json.dumps(rows))
            print(rows[-1], flush=True)
        record(config.out, strategies=STRATEGIES, rows=rows)


if __name__ == "__main__":
    errors.run(main)
