"""Damage that no training example shows, and the latent cells of the rest: one fixed square, and each --view.

40 drawn strips of 2048 x 256 and 40 boards of 3000 x 2000, with damage of 8 to 40 pixels, and any product of
photos that are not square.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from PIL import Image
from tqdm import tqdm

from benchmarks.timing import record
from data import DataConfig, load_dataset
from dataset.augmentation import IDENTITY, prepare, square_box, warp_mask
from dataset.layouts import files_of, is_good
from dataset.masks import FEW_CELLS, latent_cells
from dataset.windows import VIEWS
from runtime import errors
from runtime.cli import flag, parse

SHAPES = {"strips of 2048 x 256": (256, 2048), "boards of 3000 x 2000": (2000, 3000)}
PAD = "pad"  # the row of --fit pad
SMALLEST, LARGEST, MOST = 8, 40, 3  # pixels across, and places a photo


@dataclass
class Config:
    """The command line of benchmarks.views."""

    photos: int = flag(40, "drawn photos of each shape", group="how", minimum=1)
    epochs: int = flag(12, "epochs counted over", group="how", minimum=1)
    data: list[str] = flag([], "more products, with masks (default: none)", group="what")
    out: str = flag("benchmarks/views.json", "where the result goes", group="how")


def draw(folder: Path, shape: tuple[int, int], count: int, damage: str = "spot", level: int = 30,
         first: int = 0) -> Path:
    """A product of `count` photos (H,W), each with one to three places of `damage`, of one grey level, on
    uneven grey; drawn by seeds from `first` on."""
    for number in range(count):
        rng = np.random.default_rng(first + number)
        coarse = rng.integers(90, 130, (shape[0] // 40, shape[1] // 40), dtype=np.uint8)
        photo = np.array(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))
        mask = np.zeros(shape, np.uint8)
        for _ in range(int(rng.integers(1, MOST + 1))):
            height, width = rng.integers(SMALLEST, LARGEST + 1, 2)
            top, left = rng.integers(0, shape[0] - height), rng.integers(0, shape[1] - width)
            mask[top:top + height, left:left + width] = 255
        files = files_of(folder, damage, number)
        files.write(Image.fromarray(np.where(mask, np.uint8(level), photo)), mask > 0, 255)
    return folder


def count(data: str, view: str | None, epochs: int) -> dict[str, Any]:
    """What `epochs` epochs of a view (or of --fit pad) show of all damage; None: the one square that holds
    most of it.

    lost: connected damaged regions of which no view shows any, and the share of damaged pixels that are in no
    view; cells: the quartiles of the latent cells that an example's damage touches.
    """
    dataset = load_dataset(DataConfig([data], load_masks=True, augment=False,
                                      view=view if view in VIEWS else "whole",
                                      fit="pad" if view == PAD else "crop"))
    regions = lost = pixels = unseen = 0
    cells: list[int] = []
    for index, item in enumerate(tqdm(dataset.items, desc=f"{Path(data).name}, {view}", disable=None)):
        region = dataset.decoded(index)[1]
        if is_good(item.damage) or region is None:
            continue
        left = region.copy()
        for epoch in range(epochs if view else 1):
            top, start, side = box = (dataset.window(index, epoch) if view
                                      else square_box(region.shape, region))
            left[top:top + side, start:start + side] = 0
            cells.append(latent_cells(warp_mask(prepare(region, box, 512), IDENTITY, 512)))
        labels, found = scipy.ndimage.label(region, np.ones((3, 3)))
        shown = set(np.unique(labels[(region > 0) & (left == 0)]))
        regions, lost = regions + found, lost + found - len(shown)
        pixels, unseen = pixels + int(region.sum()), unseen + int(left.sum())
    return {"regions": regions, "lost": lost, "pixels lost": round(unseen / pixels, 5),
            "cells": np.percentile(cells, [25, 50, 75]).tolist(),
            f"examples under {FEW_CELLS} cells": round(float(np.mean(np.array(cells) < FEW_CELLS)), 3)}


def main() -> None:
    """Count each product, and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.views --data DS-MVTec/bottle\n",
                   program="-m benchmarks.views")
    with tempfile.TemporaryDirectory() as work:
        data = {name: str(draw(Path(work, f"{shape[1]}"), shape, config.photos))
                for name, shape in SHAPES.items()} | {Path(name).name: name for name in config.data}
        result = {name: {view or "one square": count(folder, view, config.epochs)
                         for view in (None, *VIEWS, PAD)} for name, folder in data.items()}
    record(config.out, epochs=config.epochs, photos=config.photos, products=result)
    for name, rows in result.items():
        for view, row in rows.items():
            print(f"{name}, {view}: {row}")


if __name__ == "__main__":
    errors.run(main)
