"""Classify generated demo images with an independent classifier.

The classifier is trained on newly drawn demo images, with seeds that `data.py demo` does not use, and on no
generated image. Printed are the confusion matrix and the accuracy with its 95 % Wilson interval, for the
generated images and for newly drawn ones. The latter is what a perfect generator would reach.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset.layouts import Photo
from evaluation.classifier import classify, confusion, fit_classifier
from evaluation.features import read_squares, resize
from evaluation.fitting import PEAK
from evaluation.metrics import wilson
from runtime import errors
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.seeds import torch_rng
from runtime.tensor_files import read_own, save_tensors
from tiny.bottles import CLASSES, draw_bottle

FIRST_SEED = 50_000_000  # data.py demo draws --seed * 1,000,000 + number; nobody gives --seed 50
SIZE, EPOCHS = 128, 8

EXAMPLE = """example:
  python -m tiny.judge generated/bottle
  python -m tiny.judge generated/one generated/other --weights judge.safetensors
Training takes 8 minutes on one core.
"""


@dataclass
class Config:
    """The command line of tiny/judge.py."""

    folder: list[str] = flag(..., "folders written by sample.py; one classifier is used for all of them",
                             positional=True, group="what")
    per_class: int = flag(500, "drawn images a class to train on", group="how", minimum=8)
    weights: str | None = flag(None, "file of the trained classifier: read if it exists, else written",
                               group="how")


def demo_images(first: int, per_class: int) -> tuple[Tensor, Tensor]:
    """Newly drawn images (4 * per_class, 3, SIZE, SIZE) in [-1, 1], and their classes."""
    images = [resize(draw_bottle(c, FIRST_SEED + first + i, SIZE)[0], SIZE)
              for c in CLASSES for i in range(per_class)]
    return torch.stack(images), torch.arange(len(CLASSES)).repeat_interleave(per_class)


def classifier(classes: int = len(CLASSES)) -> nn.Sequential:
    """A small convolutional network for images of 64 px or more, untrained."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 24), (24, 48), (48, 96), (96, 128)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(128, classes))


def train(per_class: int) -> nn.Module:
    """The classifier, trained on `per_class` newly drawn images a class."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = classifier()
        image, label = demo_images(0, per_class)
        return fit_classifier(model, {model: PEAK}, image, label, EPOCHS, torch_rng("judge"))


def load_or_train(per_class: int, weights: Path | None) -> nn.Module:
    """The classifier in the file `weights`. If the file does not exist, train one and write it there.

    Raises UserError for a file that holds a classifier with other settings, or something else.
    """
    about = {"per_class": per_class, "epochs": EPOCHS}
    if weights is None or not weights.exists():
        model = train(per_class)
        if weights is not None:
            save_tensors(weights, model.state_dict(), "judge", about)
        return model
    tensors, found = read_own(weights, "judge")
    if found != about:
        raise UserError(f"--weights {weights}: not trained with --per-class {per_class}; give another file")
    model = classifier()
    model.load_state_dict(tensors)
    return model.eval()


def load_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """The images of FOLDER/image/<class>/, at SIZE px, and their classes.

    Raises UserError where a class has no images.
    """
    photos = [Photo(file, None, None, "", name) for name in CLASSES
              for file in sorted((folder / "image" / name).glob("*.png"))]
    for name in CLASSES:
        if all(photo.damage != name for photo in photos):
            raise UserError(f"{folder / 'image' / name}: no images in it; give a folder written by sample.py")
    return read_squares(photos, SIZE), torch.tensor([CLASSES.index(photo.damage) for photo in photos])


def classified(model: nn.Module, image: Tensor, label: Tensor) -> np.ndarray:
    """Counts (class asked for, class found), 4 x 4."""
    return confusion(label.numpy(), classify(model, image), len(CLASSES))


def describe(title: str, table: np.ndarray) -> None:
    """Print a confusion matrix with its accuracy and interval."""
    correct, total = int(np.trace(table)), int(table.sum())
    low, high = wilson(correct, total)
    print(f"{title}: {correct}/{total} = {correct / total:.1%} right, 95 % interval {low:.1%} to {high:.1%}")
    for name, row in zip(CLASSES, table, strict=True):
        found = ", ".join(f"{c} {n}" for c, n in zip(CLASSES, row, strict=True))
        print(f"  {name:14s} classified as {found}")


def main() -> None:
    """The command line."""
    config = parse(Config, __doc__, EXAMPLE, program="-m tiny.judge")
    loaded = [load_folder(Path(folder)) for folder in config.folder]  # before minutes of training
    model = load_or_train(config.per_class, Path(config.weights) if config.weights else None)
    describe("newly drawn images", classified(model, *demo_images(10_000, 100)))
    for folder, (image, label) in zip(config.folder, loaded, strict=True):
        table = classified(model, image, label)
        describe(folder, table)
        print(json.dumps({"folder": folder, "confusion": table.tolist()}))


if __name__ == "__main__":
    errors.run(main)
