"""The doctor's second sheet: where masks would go on undamaged photos of the same product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dataset.image_files import read_image
from dataset.layouts import Photo, is_good
from dataset.placement import move, place
from dataset.views import view_of
from runtime.pictures import grid, outline, save_sheet
from runtime.seeds import numpy_rng

COLUMNS, SIDE = 6, 192  # masks a class, and the side of their pictures


def placement_sheet(photos: list[Photo], path: Path) -> tuple[int, int] | None:
    """Place some masks of each class, write them outlined to `path`, and return how many of how many found a
    place; None where there are no masks, or no undamaged photos to place them on. The photos can be read."""
    good: dict[str, list[Photo]] = {}
    damaged: dict[tuple[str, str], list[Photo]] = {}
    for photo in photos:
        if is_good(photo.damage):
            good.setdefault(photo.product, []).append(photo)
        elif photo.mask is not None:
            damaged.setdefault((photo.product, photo.damage), []).append(photo)
    rows, labels, tried = [], [], 0
    for (product, damage), masked in damaged.items():
        pairs = [(masked[k % len(masked)], good[product][k % len(good[product])])
                 for k in range(min(COLUMNS, len(masked)))] if product in good else []
        found = [_placed(*pair, k) for k, pair in enumerate(pairs)]
        tried += len(pairs)
        if row := [picture for picture in found if picture]:
            rows.append(row)
            labels.append(f"{product}/\n{damage}")
    if not rows:
        return (0, tried) if tried else None
    save_sheet(path, grid(rows, labels, "Masks where they would be painted on undamaged photos"))
    return sum(map(len, rows)), tried


def _placed(masked: Photo, good: Photo, number: int) -> Image.Image | None:
    """The undamaged photo with the mask outlined; None where it finds no place."""
    image, region = read_image(good.image), masked.region()
    if region is None or not region.any():
        return None
    source = view_of(read_image(masked.image), region)
    motion = place(numpy_rng("doctor", number), source, view_of(image), "any")
    if motion is None:
        return None
    shown = Image.fromarray(image)
    shown.thumbnail((SIDE, SIDE))
    marks = Image.fromarray(move(region, motion, *image.shape[:2]) * np.uint8(255))
    return outline(shown, np.asarray(marks.resize(shown.size, Image.Resampling.BOX)))
