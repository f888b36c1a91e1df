"""grid.png of a sample folder: the first images of each class and the outlines of their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.image_files import read_image
from dataset.mask_files import read_mask
from runtime.pictures import grid, outline

COUNT, SIDE = 8, 512  # images a class, and their side at most


class Shown(NamedTuple):
    """A generated image: its file, its mask's, which may not exist, and its row of samples.jsonl."""

    image: Path
    mask: Path
    row: dict[str, Any]


def contact_sheet(shown: list[Shown], classes: list[str], per_class: int) -> Image.Image | None:
    """The first images of each class; below them, if they have masks, the same with these outlined.
    None where there is no image."""
    rows, labels = [], []
    for damage in classes:
        those = [each for each in shown if each.row["class"] == damage
                 and each.row["number"] < min(per_class, COUNT)]
        images = [thumbnail(each.image) for each in those]
        outlined = [outline_small(image, each.mask)
                    for image, each in zip(images, those, strict=True) if each.mask.exists()]
        for row, label in ((images, damage), (outlined, "its masks")):
            if row:
                rows.append(row)
                labels.append(label)
    return grid(rows, labels) if rows else None


def thumbnail(file: Path) -> Image.Image:
    """A picture of at most SIDE pixels; only one is in memory at its full size."""
    image = Image.fromarray(read_image(file))
    image.thumbnail((SIDE, SIDE))
    return image


def outline_small(image: Image.Image, mask: Path) -> Image.Image:
    """A thumbnail with its mask outlined."""
    marks = Image.fromarray((read_mask(mask) != 0).astype(np.uint8) * np.uint8(255))
    return outline(image, np.asarray(marks.resize(image.size, Image.Resampling.BOX)))
