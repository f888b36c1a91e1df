"""`python data.py doctor PATH`: what is worth knowing about data before training on it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset.duplicates import Fingerprint, duplicates, fingerprint
from dataset.findings import (
    MaskLook,
    lacking,
    look_at,
    mask_findings,
    soft_note,
    unportable,
    view_advice,
)
from dataset.image_files import opened, read_image
from dataset.layouts import Photo, find_products, is_good
from dataset.masks import FEW_CELLS
from dataset.placement_sheet import placement_sheet
from dataset.scan import scan_products
from runtime import files, pictures
from runtime.cli import flag, parse
from runtime.errors import UserError

THUMBNAIL = 192
COLUMNS = 8
SMALLEST = 5  # damages listed by name
EXAMPLE = """example:
  python data.py doctor DS-MVTec/bottle
  python data.py doctor my/bottle my/cap --resolution 256 --out look.png
  python data.py demo demo/bottle --per-class 20
The doctor's exit status is 0, 1 where it found problems, 2 where it could not look.
"""


@dataclass
class Doctor:
    """The command line of `data.py doctor`."""

    command: str = flag(..., "doctor: look for mistakes before training; demo: draw a dataset, "
                        "good and damaged (python data.py demo --help)", choices=("doctor", "demo"),
                        positional=True, group="what")
    path: list[str] = flag(..., "what you would give to --data", positional=True, group="what")
    resolution: int = flag(512, "judge masks at this size in pixels", group="what", minimum=64,
                           maximum=4096)
    out: str = flag("doctor.png", "contact sheet to write; OUT-placement.png shows where masks would be "
                    "painted on undamaged photos", group="what")
    json: bool = flag(False, "print one JSON object instead of the page", group="what")


def main(description: str, check_resolution: Callable[[int], int]) -> None:
    """The command. check_resolution raises UserError where the model cannot have that size."""
    config = parse(Doctor, description, EXAMPLE)
    sys.exit(report(config.path, check_resolution(config.resolution), Path(config.out), config.json))


@dataclass
class Look:
    """What one photo and its mask showed."""

    mask: MaskLook
    size: str
    mode: str
    fingerprint: Fingerprint
    thumbnail: Image.Image

    @property
    def photo(self) -> Photo:
        return self.mask.photo

    @property
    def cells(self) -> int:
        """The latent cells that the damage touches in a whole view."""
        return self.mask.cells.get("whole", 0)


def _look(photo: Photo, resolution: int) -> Look:
    """Decode one photo and its mask. Raises UserError where that fails."""
    image, region = read_image(photo.image), photo.region()
    height, width = image.shape[:2]
    region = np.zeros((height, width), np.uint8) if region is None else region
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    if region.any():
        marks = Image.fromarray(region * np.uint8(255)).resize(thumbnail.size, Image.Resampling.BOX)
        thumbnail = pictures.outline(thumbnail, np.asarray(marks))
    with opened(photo.image) as file:
        mode = file.mode
    return Look(look_at(photo, resolution), f"{width}x{height}", mode, fingerprint(photo, image, region),
                thumbnail)


def _missing_masks(photos: list[Photo]) -> list[str]:
    """Damaged images without a mask, of products that have masks."""
    masked = {photo.product for photo in photos if photo.mask is not None}
    return [f"{photo.image}: no mask, though others of {photo.product} have one; add it"
            for photo in photos
            if photo.mask is None and not is_good(photo.damage) and photo.product in masked]


def _numbers(looks: list[Look]) -> dict[str, Any]:
    """What there is to say about one class. Areas are smallest, median and largest."""
    drawn = [look for look in looks if look.mask.pixels]

    def spread(values: list[float]) -> list[float]:
        return np.percentile(values, [0, 50, 100]).tolist() if values else []

    return {"images": len(looks), "sizes": dict(Counter(look.size for look in looks).most_common()),
            "modes": dict(Counter(look.mode for look in looks).most_common()),
            "masks": sum(look.photo.mask is not None for look in looks),
            "mask_values": sorted(set().union(*(look.mask.values for look in drawn))),
            "mask_pixels": spread([look.mask.pixels for look in drawn]),
            "mask_share": spread([look.mask.share for look in drawn]),
            "latent_cells": spread([look.cells for look in drawn]),
            "latent_cells_close": spread([look.mask.cells["close"] for look in drawn]),
            "latent_cells_pad": spread([look.mask.cells["pad"] for look in drawn])}


def _common(counts: dict[str, int]) -> str:
    """The three most frequent values, with counts where there are several."""
    text = ", ".join(value if len(counts) == 1 else f"{value} ({count})"
                     for value, count in list(counts.items())[:3])
    return text + (f" and {len(counts) - 3} others" if len(counts) > 3 else "")


def _class_lines(name: str, of: dict[str, Any], resolution: int) -> list[str]:
    """What to print about one class."""
    lines = [f"{name}: {of['images']} images, {_common(of['sizes'])}, {_common(of['modes'])}; "
             f"{of['masks']} masks"]
    if values := of["mask_values"]:
        pixels, share, cells, close, pad = (
            " / ".join(format(value, form) for value in of[key]) for key, form in
            (("mask_pixels", ".0f"), ("mask_share", ".2%"), ("latent_cells", ".0f"),
             ("latent_cells_close", ".0f"), ("latent_cells_pad", ".0f")))
        lines += [f"    mask values {', '.join(map(str, values[:8]))}{' ...' if len(values) > 8 else ''}"
                  + (" (255: a plain mask, read as damage)" if values == [255] else ""),
                  f"    mask area, smallest / median / largest: {pixels} px, {share}, {cells} latent cells "
                  f"at {resolution} px, {close} with --view close"
                  + (f", {pad} with --fit pad" if pad != cells else "")]
    return lines


def _sheet(classes: dict[str, list[Look]], path: Path) -> None:
    """Up to eight images a class, the smallest damage first, masks outlined."""
    rows = [sorted(looks, key=lambda look: look.mask.pixels)[:COLUMNS] for looks in classes.values()]
    labels = [f"{name.replace('/', '/' + chr(10))}\n{len(looks)} images" for name, looks in classes.items()]
    masked = any(look.mask.pixels for looks in classes.values() for look in looks)
    title = "Masks outlined; the smallest damage of each class first" if masked else "No masks"
    shown = [[look.thumbnail for look in row] for row in rows]
    pictures.save_sheet(path, pictures.grid(shown, labels, title))


def report(names: list[str], resolution: int, out: Path, as_json: bool = False) -> int:
    """Print the findings about the datasets `names`, as text or JSON, and write the contact sheet `out`.

    Returns the exit status, 1 for problems. Raises UserError where `out` is no name of a PNG or lies among
    photos, and where it or the second sheet beside it would replace what no command here drew.
    """
    products = find_products(names)
    files.refuse_inside(out, [str(product.folder / name) for product in products
                              for name in (*product.layout.images, product.layout.masks)])
    if out.is_dir():
        raise UserError(f"--out {out}: a folder; name the picture too, such as {out / 'doctor.png'}")
    placements = out.with_stem(f"{out.stem}-placement")
    for sheet in (out, placements):
        pictures.refuse_foreign(sheet)
    scan = scan_products(products)
    problems, looks = scan.problems + scan.lost, []
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
    masks, placed = [look.mask for look in looks], None
    if looks:
        problems += (mask_findings(masks) + _missing_masks([look.photo for look in looks])
                     + duplicates([look.fingerprint for look in looks]))
        _sheet(classes, out)
        placed = placement_sheet([look.photo for look in looks], placements)
    smallest = sorted((look for look in looks if look.mask.pixels), key=lambda look: look.cells)[:SMALLEST]
    found = {"resolution": resolution, "classes": {name: _numbers(group) for name, group in classes.items()},
             "smallest": [{"image": str(look.photo.image), "pixels": look.mask.pixels,
                           "share": look.mask.share, "latent_cells": look.cells} for look in smallest],
             "notes": [*scan.notes, *soft_note(masks), *lacking(scan.photos), *unportable(scan.photos),
                       *view_advice(masks, resolution)],
             "sheet": str(out) if looks else None,
             "placements": placed and {"sheet": str(placements) if placed[0] else None, "placed": placed[0],
                                       "tried": placed[1]},
             "problems": list(dict.fromkeys(problems))}
    print(json.dumps(found) if as_json else _page(found))
    return 1 if problems else 0


def _page(found: dict[str, Any]) -> str:
    """The findings as text."""
    resolution, problems = found["resolution"], found["problems"]
    lines = [line for name, of in found["classes"].items() for line in _class_lines(name, of, resolution)]
    if found["smallest"]:
        lines += [f"smallest damage (under {FEW_CELLS} latent cells it may be lost at {resolution} px):"]
        lines += [f"    {each['image']}: {each['pixels']} px, {each['share']:.2%}, {each['latent_cells']} "
                  "latent cells" for each in found["smallest"]]
    lines += [f"note: {note}" for note in found["notes"]]
    if found["sheet"]:
        lines.append(f"contact sheet: {found['sheet']}")
    if placed := found["placements"]:
        lines.append(f"masks that find a place on an undamaged photo: {placed['placed']} of {placed['tried']}"
                     + (f", shown in {placed['sheet']}" if placed["sheet"] else ""))
    lines += [f"problem: {problem}" for problem in problems]
    return "\n".join([*lines, f"{len(problems)} problems found" if problems else "no problems found"])
