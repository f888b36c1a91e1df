"""An independent judge of demo images: `python -m tiny.judge generated/bottle`.

A small classifier trained on fresh demo images (500 a class, of seeds that `data.py demo` never uses), not on
anything generated. It prints, for each class asked for, how many of the generated images it puts there, with
the 95 % Wilson interval, and the same for fresh drawn images: what a perfect generator would reach.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import errors
from decode import read_image
from demo import CLASSES, draw_bottle
from errors import UserError
from judge import classify, confusion, fit
from metrics import wilson
from seeds import torch_rng

FIRST_SEED = 50_000_000  # data.py demo draws --seed * 1,000,000 + number; nobody gives --seed 50


def demo_images(first: int, per_class: int) -> tuple[Tensor, Tensor]:
    """(4 * per_class, 3, 128, 128) in [-1, 1], drawn afresh, and their classes."""
    images = [draw_bottle(c, FIRST_SEED + first + i, 128)[0] for c in CLASSES for i in range(per_class)]
    return to_tensor(np.stack(images)), torch.arange(len(CLASSES)).repeat_interleave(per_class)


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def classifier() -> nn.Sequential:
    """A small convolutional network for 128 px."""
    layers: list[nn.Module] = []
    for c_in, c_out in ((3, 24), (24, 48), (48, 96), (96, 128)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.2),
                         nn.Linear(128, len(CLASSES)))


def train(per_class: int, epochs: int = 8) -> nn.Module:
    """The judge, trained on `per_class` fresh images a class."""
    torch.manual_seed(0)
    image, label = demo_images(0, per_class)
    model = classifier()
    return fit(model, {model: 4e-3}, image, label, epochs, torch_rng("judge"))


def confusion_of(model: nn.Module, image: Tensor, label: Tensor) -> np.ndarray:
    """(asked for, judged as) counts, 4 x 4."""
    return confusion(label.numpy(), classify(model, image), len(CLASSES))


def load_folder(folder: Path) -> tuple[Tensor, Tensor]:
    """The images of FOLDER/image/<class>/, at 128 px, and their classes."""
    images, labels = [], []
    for index, name in enumerate(CLASSES):
        files = sorted((folder / "image" / name).glob("*.png"))
        if not files:
            raise UserError(f"{folder / 'image' / name}: no images there; give a folder that sample.py wrote")
        images += [np.asarray(Image.fromarray(read_image(file)).resize((128, 128), Image.LANCZOS))
                   for file in files]
        labels += [index] * len(files)
    return to_tensor(np.stack(images)), torch.tensor(labels)


def describe(title: str, table: np.ndarray) -> None:
    """Print a confusion matrix with its accuracy and interval."""
    correct, total = int(np.trace(table)), int(table.sum())
    low, high = wilson(correct, total)
    print(f"{title}: {correct}/{total} = {correct / total:.1%} right, 95 % interval {low:.1%} to {high:.1%}")
    for name, row in zip(CLASSES, table, strict=True):
        print(f"  {name:14s} judged as " + ", ".join(f"{c} {n}" for c, n in zip(CLASSES, row, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="what sample.py wrote")
    parser.add_argument("--per-class", type=int, default=500, help="fresh images a class to learn from")
    arguments = parser.parse_args()
    if arguments.per_class < 8:
        raise UserError(f"--per-class {arguments.per_class}: at least 8; the README's numbers use 500")
    loaded = [load_folder(folder) for folder in arguments.folder]  # before minutes of training
    model = train(arguments.per_class)
    describe("fresh drawn images", confusion_of(model, *demo_images(10_000, 100)))
    for folder, (image, label) in zip(arguments.folder, loaded, strict=True):
        table = confusion_of(model, image, label)
        describe(str(folder), table)
        print(json.dumps({"folder": str(folder), "confusion": table.tolist()}))


if __name__ == "__main__":
    errors.run(main)
