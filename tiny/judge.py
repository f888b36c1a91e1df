"""An independent judge of demo images: `python -m tiny.judge generated/bottle`.

A small classifier trained on fresh demo images (500 a class, of seeds that `data.py demo` never uses), not on
anything generated. It prints, for each class asked for, how many of the generated images it puts there, with
the 95 % Wilson interval, and the same for fresh drawn images: what a perfect generator would reach.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor, nn
from tqdm import trange

import errors
from decode import read_image
from demo import CLASSES, draw_bottle
from errors import UserError
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


def augmented(image: Tensor, rng: torch.Generator) -> Tensor:
    """Flips, quarter turns, soft warps, blur of 0 to 2.5 px, light and noise: the judge is to look at the
    damage, not at how sharp a picture or how round an outline is, for a small base draws softly and unevenly.
    """
    if torch.rand((), generator=rng) < 0.5:
        image = image.flip(3)
    image = image.rot90(int(torch.randint(4, (), generator=rng)), (2, 3))
    image = warped(image, rng)
    image = torch.cat([gaussian_blur(part, 0.1 + 2.4 * float(torch.rand((), generator=rng)))
                       for part in image.split(4)])
    gain = 1 + 0.15 * torch.randn(len(image), 1, 1, 1, generator=rng)
    return (image * gain + 0.02 * torch.randn(image.shape, generator=rng)).clamp(-1, 1)


def warped(image: Tensor, rng: torch.Generator) -> Tensor:
    """Displace (B, 3, 128, 128) smoothly, each image with its own strength: by 0 to 3 px at a standard
    deviation, uncorrelated 20 px apart."""
    strength = 3 / 64 * torch.rand(len(image), 1, 1, 1, generator=rng)
    shift = strength * torch.randn(len(image), 2, 7, 7, generator=rng)
    shift = F.interpolate(shift, image.shape[2:], mode="bicubic", align_corners=True)
    still = F.affine_grid(torch.eye(2, 3).expand(len(image), 2, 3), list(image.shape), align_corners=False)
    return F.grid_sample(image, still + shift.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (B, 3, H, W) with a Gaussian of `sigma` pixels."""
    return torchvision.transforms.functional.gaussian_blur(image, 2 * math.ceil(2.5 * sigma) + 1, sigma)


def train(per_class: int, epochs: int = 8) -> nn.Module:
    """The judge, trained on `per_class` fresh images a class."""
    rng = torch_rng("judge")
    torch.manual_seed(0)
    image, label = demo_images(0, per_class)
    model = classifier()
    steps = epochs * (len(image) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for step in trange(steps, desc="judge", disable=None):
        if step % (len(image) // 32) == 0:
            order = torch.randperm(len(image), generator=rng)
        chosen = order[step % (len(image) // 32) * 32:][:32]
        loss = F.cross_entropy(model(augmented(image[chosen], rng)), label[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def confusion(model: nn.Module, image: Tensor, label: Tensor) -> np.ndarray:
    """(asked for, judged as) counts, 4 x 4."""
    table = np.zeros((len(CLASSES), len(CLASSES)), int)
    for x, y in zip(image.split(64), label.split(64), strict=True):
        np.add.at(table, (y.numpy(), model(x).argmax(1).numpy()), 1)
    return table


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


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
    describe("fresh drawn images", confusion(model, *demo_images(10_000, 100)))
    for folder, (image, label) in zip(arguments.folder, loaded, strict=True):
        table = confusion(model, image, label)
        describe(str(folder), table)
        print(json.dumps({"folder": str(folder), "confusion": table.tolist()}))


if __name__ == "__main__":
    errors.run(main)
