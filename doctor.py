"""What `python data.py doctor PATH` prints: everything worth knowing about data before training on it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import files
import pictures
from augmentation import square_box
from decode import read_image, read_mask, region_of, values_in
from errors import UserError
from folders import GOOD, Photo, find_products, scan_products
from masks import FEW_CELLS

THUMBNAIL = 192
COLUMNS = 8
SMALLEST = 5  # damages listed by name
# Grey 32x32 thumbnails (0..255) of two real bottles differ by 5 or more (RMS), of a resaved one by under 1.
NEAR = 2.0


@dataclass
class Look:
    """What one photo showed. `cells` counts the 8x8-pixel latent cells that the region touches."""

    photo: Photo
    size: str
    mode: str
    digest: str
    tiny: np.ndarray
    thumbnail: Image.Image
    values: list[int]
    pixels: int
    share: float
    cells: int
    kept: float


def _look(photo: Photo, resolution: int) -> Look:
    """Decode one photo and its mask. Raises UserError where that fails."""
    image = read_image(photo.image)
    height, width = image.shape[:2]
    values = np.zeros((height, width), np.int32) if photo.mask is None else read_mask(photo.mask)
    region = region_of(values, photo.mask_value)
    top, left, side = square_box(height, width, region)
    pixels = int(region.sum())
    points = np.argwhere(region[top:top + side, left:left + side])
    cells = np.zeros((resolution // 8, resolution // 8), bool)
    cells[tuple((points * (resolution // 8) // side).T)] = True
    picture = Image.fromarray(image)
    tiny = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32).ravel()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    if pixels:
        marks = Image.fromarray(region * 255).resize(picture.size, Image.Resampling.BOX)
        picture = pictures.outline(picture, np.asarray(marks))
    with Image.open(photo.image) as file:
        mode = file.mode
    return Look(photo, f"{width}x{height}", mode, hashlib.blake2b(image.tobytes()).hexdigest(), tiny, picture,
                values_in(values), pixels, pixels / region.size, int(cells.sum()),
                len(points) / pixels if pixels else 1.0)


def _mask_problems(looks: list[Look]) -> list[str]:
    """Masks that decode but cannot be right."""
    problems = []
    for look in looks:
        photo = look.photo
        if photo.mask is None:
            continue
        if photo.damage == GOOD and look.pixels:
            problems.append(f"{photo.mask}: marks damage on a {GOOD} image; empty it or move the image")
        elif photo.damage != GOOD and not look.pixels:
            problems.append(f"{photo.mask}: empty, but its image is not {GOOD}; draw it or move the image")
        elif look.share > 0.9:
            problems.append(f"{photo.mask}: covers {look.share:.0%} of the image; is it inverted?")
        elif look.kept < 0.5:
            problems.append(f"{photo.mask}: {1 - look.kept:.0%} of the damage lies outside the square that "
                            "is trained on; cut the image nearer to a square")
    return problems


def _missing_masks(looks: list[Look]) -> list[str]:
    """Damaged images without a mask, of products that have masks."""
    masked = {look.photo.product for look in looks if look.photo.mask is not None}
    return [f"{look.photo.image}: no mask, though others of {look.photo.product} have one; add it"
            for look in looks
            if look.photo.mask is None and look.photo.damage != GOOD and look.photo.product in masked]


def _duplicates(looks: list[Look]) -> list[str]:
    """Pairs of equal or nearly equal images, each image with the first like it."""
    unique = list({look.photo.image: look for look in looks}.values())  # one image may hold several classes
    problems, stack = [], np.stack([look.tiny for look in unique])
    for index, look in enumerate(unique):
        distances = np.sqrt(((stack[:index] - look.tiny) ** 2).mean(axis=1))
        if index == 0 or distances.min() > NEAR:
            continue
        twin = unique[int(distances.argmin())]
        kind = "the same image as" if look.digest == twin.digest else "nearly the same image as"
        other = (look.photo.product, look.photo.damage) != (twin.photo.product, twin.photo.damage)
        problems.append(f"{look.photo.image}: {kind} {twin.photo.image}"
                        + (", in another class" if other else "") + "; keep one")
    return problems


def _numbers(looks: list[Look]) -> dict[str, Any]:
    """What there is to say about one class. Areas are smallest, median and largest."""
    drawn = [look for look in looks if look.photo.mask is not None and look.pixels]

    def spread(values: list[float]) -> list[float]:
        return np.percentile(values, [0, 50, 100]).tolist() if values else []

    return {"images": len(looks), "sizes": dict(Counter(look.size for look in looks).most_common()),
            "modes": dict(Counter(look.mode for look in looks).most_common()),
            "masks": sum(look.photo.mask is not None for look in looks),
            "mask_values": sorted(set().union(*(look.values for look in drawn))),
            "mask_pixels": spread([look.pixels for look in drawn]),
            "mask_share": spread([look.share for look in drawn]),
            "latent_cells": spread([look.cells for look in drawn])}


def _common(counts: dict[str, int]) -> str:
    text = ", ".join(value if len(counts) == 1 else f"{value} ({count})"
                     for value, count in list(counts.items())[:3])
    return text + (f" and {len(counts) - 3} others" if len(counts) > 3 else "")


def _class_lines(name: str, of: dict[str, Any], resolution: int) -> list[str]:
    """What to print about one class."""
    lines = [f"{name}: {of['images']} images, {_common(of['sizes'])}, {_common(of['modes'])}; "
             f"{of['masks']} masks"]
    if values := of["mask_values"]:
        pixels, share, cells = (" / ".join(format(value, form) for value in of[key]) for key, form in
                                (("mask_pixels", ".0f"), ("mask_share", ".2%"), ("latent_cells", ".0f")))
        lines += [f"    mask values {', '.join(map(str, values[:8]))}{' ...' if len(values) > 8 else ''}"
                  + (" (255: a plain mask, read as damage)" if values == [255] else ""),
                  f"    mask area, smallest / median / largest: {pixels} px, {share}, {cells} latent cells "
                  f"at {resolution} px"]
    return lines


def _sheet(classes: dict[str, list[Look]], path: Path) -> None:
    """Up to eight images a class, the smallest damage first, masks outlined."""
    rows = [sorted(looks, key=lambda look: look.pixels)[:COLUMNS] for looks in classes.values()]
    labels = [f"{name.replace('/', '/' + chr(10))}\n{len(looks)} images" for name, looks in classes.items()]
    title = "Masks outlined; the smallest damage of each class first"
    files.save_image(path, pictures.grid([[look.thumbnail for look in row] for row in rows], labels, title))


def report(names: list[str], resolution: int, out: Path, as_json: bool = False) -> int:
    """Print all about the datasets `names`, write the contact sheet `out`. Returns 1 with problems.

    as_json: one JSON object instead of the page.
    """
    scan = scan_products(find_products(names))
    problems, looks = list(scan.problems), []
    if sys.stderr.isatty():
        print(f"looking at {len(scan.photos)} images ...", file=sys.stderr)
    for photo in scan.photos:
        try:
            looks.append(_look(photo, resolution))
        except UserError as error:
            problems.append(str(error))
    classes: dict[str, list[Look]] = {}
    for look in sorted(looks, key=lambda look: (look.photo.product, look.photo.damage)):
        classes.setdefault(f"{look.photo.product}/{look.photo.damage}", []).append(look)
    if looks:
        problems += _mask_problems(looks) + _missing_masks(looks) + _duplicates(looks)
        _sheet(classes, out)
    smallest = sorted((look for look in looks if look.pixels), key=lambda look: look.cells)[:SMALLEST]
    found = {"resolution": resolution, "classes": {name: _numbers(group) for name, group in classes.items()},
             "smallest": [{"image": str(look.photo.image), "pixels": look.pixels, "share": look.share,
                           "latent_cells": look.cells} for look in smallest],
             "notes": scan.notes, "sheet": str(out) if looks else None, "problems": problems}
    print(json.dumps(found) if as_json else _page(found))
    return 1 if problems else 0


def _page(found: dict[str, Any]) -> str:
    """The findings to be read."""
    resolution, problems = found["resolution"], found["problems"]
    lines = [line for name, of in found["classes"].items() for line in _class_lines(name, of, resolution)]
    if found["smallest"]:
        lines += [f"smallest damage (under {FEW_CELLS} latent cells it may be lost at {resolution} px):"]
        lines += [f"    {each['image']}: {each['pixels']} px, {each['share']:.2%}, {each['latent_cells']} "
                  "latent cells" for each in found["smallest"]]
    lines += [f"note: {note}" for note in found["notes"]]
    if found["sheet"]:
        lines.append(f"contact sheet: {found['sheet']}")
    lines += [f"problem: {problem}" for problem in problems]
    return "\n".join([*lines, f"{len(problems)} problems found" if problems else "no problems found"])
