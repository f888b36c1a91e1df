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
from tiny.bottles import CLASSES
from tiny.demo import PRODUCTS

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
    product: str = flag("bottle", "what the images are of, as in data.py demo", choices=tuple(PRODUCTS),
                        group="what")
    weights: str | None = flag(None, "file of the trained classifier: read if it exists, else written",
                               group="how")


def demo_images(first: int, per_class: int, product: str = "bottle") -> tuple[Tensor, Tensor]:
    """Newly drawn images (classes * per_class, 3, SIZE, SIZE) in [-1, 1], and their classes."""
    classes, draw = PRODUCTS[product]
    images = [resize(draw(c, FIRST_SEED + first + i, SIZE)[0], SIZE)
              for c in classes for i in range(per_class)]
    return torch.stack(images), torch.arange(len(classes)).repeat_interleave(per_class)


def classifier(classes: int = len(CLASSES)) -> nn.Sequential:
    """A small convolutional network for SIZE px, untrained."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 24), (24, 48), (48, 96), (96, 128)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(128, classes))


def train(per_class: int, product: str) -> nn.Module:
    """The classifier, trained on `per_class` newly drawn images a class."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = classifier(len(PRODUCTS[product][0]))
        image, label = demo_images(0, per_class, product)
        return fit_classifier(model, {model: PEAK}, image, label, EPOCHS, torch_rng("judge"))


def load_or_train(per_class: int, weights: Path | None, product: str = "bottle") -> nn.Module:
    """The classifier in the file `weights`. If the file does not exist, train one and write it there.

    Raises UserError for a file that holds a classifier with other settings, or something else.
    """
    about = {"per_class": per_class, "epochs": EPOCHS,
             **({} if product == "bottle" else {"product": product})}
    if weights is None or not weights.exists():
        model = train(per_class, product)
        if weights is not None:
            save_tensors(weights, model.state_dict(), "judge", about)
        return model
    tensors, found = read_own(weights, "judge")
    if found != about:
        raise UserError(f"--weights {weights}: not trained with --per-class {per_class} and --product "
                        f"{product}; give another file")
    model = classifier(len(PRODUCTS[product][0]))
    model.load_state_dict(tensors)
    return model.eval()


def load_folder(folder: Path, classes: tuple[str, ...] = CLASSES) -> tuple[Tensor, Tensor]:
    """The images of FOLDER/image/<class>/, at SIZE px, and their classes.

    Raises UserError where a class has no images.
    """
    photos = [Photo(file, None, None, "", name) for name in classes
              for file in sorted((folder / "image" / name).glob("*.png"))]
    for name in classes:
        if all(photo.damage != name for photo in photos):
            raise UserError(f"{folder / 'image' / name}: no images in it; give a folder written by sample.py")
    return read_squares(photos, SIZE), torch.tensor([classes.index(photo.damage) for photo in photos])


def classified(model: nn.Module, image: Tensor, label: Tensor, classes: int = len(CLASSES)) -> np.ndarray:
    """Counts (class asked for, class found), (classes, classes)."""
    return confusion(label.numpy(), classify(model, image), classes)


def describe(title: str, table: np.ndarray, classes: tuple[str, ...] = CLASSES) -> None:
    """Print a confusion matrix with its accuracy and interval."""
    correct, total = int(np.trace(table)), int(table.sum())
    low, high = wilson(correct, total)
    print(f"{title}: {correct}/{total} = {correct / total:.1%} right, 95 % interval {low:.1%} to {high:.1%}")
    for name, row in zip(classes, table, strict=True):
        found = ", ".join(f"{c} {n}" for c, n in zip(classes, row, strict=True))
        print(f"  {name:14s} classified as {found}")


def main() -> None:
    """The command line."""
    config = parse(Config, __doc__, EXAMPLE, program="-m tiny.judge")
    classes, product = PRODUCTS[config.product][0], config.product
    loaded = [load_folder(Path(folder), classes) for folder in config.folder]  # before minutes of training
    model = load_or_train(config.per_class, Path(config.weights) if config.weights else None, product)
    drawn = classified(model, *demo_images(10_000, 100, product), len(classes))
    describe("newly drawn images", drawn, classes)
    for folder, (image, label) in zip(config.folder, loaded, strict=True):
        table = classified(model, image, label, len(classes))
        describe(folder, table, classes)
        print(json.dumps({"folder": folder, "confusion": table.tolist()}))


if __name__ == "__main__":
    errors.run(main)
