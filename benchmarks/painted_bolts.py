"""Damage painted on drawn bolts: is it on its part, and of the class asked for? With masks placed by their
surroundings, and as an earlier rule placed them.

The classifier learnt from squares around the damage of other drawn bolts, and around the same places of the
same bolts undamaged. evaluate.py --downstream shows what the images add to training on bolts that the model
was not trained on. The embedded base never saw a bolt. What is in the work folder is used again, so a stopped
command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.downstream import downstream
from benchmarks.timing import command, record
from dataset.image_files import read_image
from dataset.mask_files import read_mask
from evaluation.classifier import classify, confusion, fit_classifier
from evaluation.features import cut_square
from evaluation.fitting import PEAK
from evaluation.metrics import wilson
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import read_rows
from runtime.seeds import torch_rng
from tiny import bolts
from tiny.judge import classifier

DAMAGES = [name for name in bolts.CLASSES if name in bolts.PART_OF]  # each belongs to one part
SIDE, PHOTOS = 256, 1  # of the drawn bolts, in pixels; the seed of those that are painted on
CROP, EPOCHS, FIRST_SEED = 64, 8, 50_000_000  # of the classifier; nobody gives data.py demo --seed 50
PLACED, EARLIER = "by surroundings", "by an earlier rule"


@dataclass
class Config:
    """The command line of benchmarks.painted_bolts."""

    seeds: list[int] = flag([42], "seeds of training and drawing", group="how")
    per_class: int = flag(20, "bolts of each class to train on, and images to paint", group="how", minimum=2)
    epochs: int = flag(60, "epochs of training", group="how", minimum=1)
    steps: int = flag(50, "sampling steps", group="how", minimum=1)
    judged_by: int = flag(300, "drawn bolts a class that the classifier learns from", group="how", minimum=8)
    earlier: str | None = flag(None, "masks as an earlier rule placed them, FOLDER/<damage>/<photo>.png, for "
                               "the photos in WORK/photos/image/good (default: not measured)", group="what")
    downstream: bool = flag(True, "measure what the first seed's images add to training", group="how")
    work: str = flag("/tmp/painted_bolts", "folder for data, runs and images", group="how")
    out: str = flag("benchmarks/painted_bolts.json", "where the result goes", group="how")


def on_parts(out: Path) -> list[bool]:
    """Of each image whether its mask lies on the part that its damage belongs to, more than on any other."""
    found = []
    for row in read_rows(out / "samples.jsonl"):
        number = PHOTOS * 1_000_000 + int(Path(row["photo"]).stem)
        mask = read_mask(out / f"mask/{row['class']}/{row['number']:03}_mask.png") > 0
        there = bolts.bolt_parts("good", number, SIDE)[mask]
        expected = 1 + bolts.PARTS.index(bolts.PART_OF[row["class"]])
        found.append(bool(there.any()) and int(np.bincount(there[there > 0]).argmax()) == expected)
    return found


def examples(first: int, count: int) -> tuple[Tensor, Tensor]:
    """Squares (N,3,CROP,CROP) in [-1,1] around drawn damage, and around places without any, with classes."""
    squares, label = [], []
    for number in range(first, first + count):
        for damage in DAMAGES:
            image, mask = bolts.draw_bolt(damage, FIRST_SEED + number, SIDE)
            squares.append(cut_square(image, mask, CROP, crop=True))
            label.append(DAMAGES.index(damage))
        damage = DAMAGES[number % len(DAMAGES)]
        image, mask = bolts.draw_bolt(damage, FIRST_SEED + number, SIDE, before=True)
        squares.append(cut_square(image, mask, CROP, crop=True))
        label.append(len(DAMAGES))
    return torch.stack(squares), torch.tensor(label)


def judge(count: int) -> nn.Module:
    """The classifier, trained on `count` drawn bolts a class."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = classifier(len(DAMAGES) + 1)
        return fit_classifier(model, {model: PEAK}, *examples(0, count), EPOCHS, torch_rng("bolts"))


def judged(model: nn.Module, out: Path) -> np.ndarray:
    """Counts (damage asked for, damage found or none)."""
    squares, label = [], []
    for row in read_rows(out / "samples.jsonl"):
        mask = read_mask(out / f"mask/{row['class']}/{row['number']:03}_mask.png")
        squares.append(cut_square(read_image(out / row["file"]), mask, CROP, crop=True))
        label.append(DAMAGES.index(row["class"]))
    return confusion(np.array(label), classify(model, torch.stack(squares)), len(DAMAGES) + 1)


def measure(config: Config, model: nn.Module, seed: int, rule: str) -> dict[str, Any]:
    """Train, unless there is a run already; paint with the masks of one rule; judge."""
    work = Path(config.work)
    run, out = work / f"run-{seed}", work / f"{rule.replace(' ', '-')}-{seed}"
    if not (run / "adapter.safetensors").exists():
        command("train_inpaint.py", "--data", work / "bolt", "--base", "tiny", "--seed", seed, "--epochs",
                config.epochs, "--preview-every", 0, "--no-validate", "--out", run)
    masks = ["--masks", config.earlier] if rule == EARLIER and config.earlier else []
    command("sample.py", "--ckpt", run, "--images", work / "photos/image/good", *masks, "--classes", *DAMAGES,
            "--per-class", config.per_class, "--steps", config.steps, "--seed", seed, "--out", out)
    table, part = judged(model, out), on_parts(out)
    right = int(table.trace())
    found = {"masks": rule, "seed": seed, "images": len(part), "on its part": sum(part), "right": right,
             "interval": wilson(right, len(part)), "confusion": table.tolist()}
    helps = config.downstream and seed == config.seeds[0]
    return found | ({"downstream": downstream(work / "photos", out, DAMAGES)} if helps else {})


def main() -> None:
    """Measure each seed and rule, and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.painted_bolts --seeds 42 43 44\n",
                   program="-m benchmarks.painted_bolts")
    work = Path(config.work)
    for folder, seed, count in ((work / "bolt", 0, config.per_class),
                                (work / "photos", PHOTOS, config.per_class + 4)):
        if not folder.exists():
            command("data.py", "demo", folder, "--product", "bolt", "--per-class", count, "--seed", seed)
    model = judge(config.judged_by)
    image, label = examples(10_000, -(-config.judged_by // 6))
    fresh = confusion(label.numpy(), classify(model, image), len(DAMAGES) + 1)
    print(f"on newly drawn bolts the classifier is right on {fresh.trace()} of {len(label)}")
    rows = [measure(config, model, seed, rule) for seed in config.seeds
            for rule in ([PLACED, EARLIER] if config.earlier else [PLACED])]
    record(config.out, per_class=config.per_class, epochs=config.epochs, judge_on_fresh_bolts=fresh.tolist(),
           rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    errors.run(main)
