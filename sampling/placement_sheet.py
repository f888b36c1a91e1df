"""Where masks would go: a sheet to look at before anything is painted."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from runtime import distributed
from runtime.errors import UserError
from runtime.files import below_here, refuse_inside
from runtime.pictures import grid, outline, refuse_foreign, save_sheet
from sampling.further_damages import placed_damages
from sampling.inputs import Input, Inputs

SHOWN, SIDE = 8, 512  # masks a class, and the side of their pictures at most


def show_placements(inputs: Inputs, classes: list[str], per_class: int, out: Path, read: list[str], *,
                    as_json: bool) -> None:
    """Deal the masks of the first images of each class, write them outlined, and say how well they fit.

    The sheet lies beside `out`, which stays as it is. Raises UserError where that is in one of the folders
    `read`, where something else has its name, and where no mask finds a place.
    """
    if not distributed.first():
        return
    sheet = Path(below_here(out.resolve().parent / f"{out.resolve().name}-placement.png"))
    refuse_inside(sheet, read)
    refuse_foreign(sheet)
    rows, labels, scores, lost, tried = [], [], dict[str, float | None](), Counter[str](), 0
    for damage in tqdm(classes, unit="class", desc="placing masks", disable=None):
        found, row = [], []
        for number in range(min(per_class, SHOWN)):
            each = inputs.prepare(damage, number)
            tried += len(each.rejected)
            lost[damage] += not each.fits
            if each.fits:
                found += [each.about["score"]] if "score" in each.about else []
                row += [] if each.region is None else [_shown(inputs, each)]
        scores[damage] = round(float(np.median(found)), 4) if found else None
        if row:
            rows.append(row)
            labels.append(damage if scores[damage] is None else f"{damage}\nscore {scores[damage]:.2f}")
    if not rows:
        raise UserError("--placement-only: no mask finds a place; give photos of the masks' product")
    save_sheet(sheet, grid(rows, labels, "Where masks go, and how well their surroundings agree"))
    result = {"sheet": str(sheet), "score": scores, "tried_again": tried, "left_out": sum(lost.values())}
    if as_json:
        print(json.dumps(result))
        return
    print(f"{sheet}: {sum(map(len, rows))} masks placed; {tried} times a mask did not fit, and another pair "
          f"of mask and photo was tried; {result['left_out']} images without a place")
    if result["left_out"]:
        print("without a place: " + ", ".join(f"{name} {count}" for name, count in lost.items() if count),
              file=sys.stderr)


def _shown(inputs: Inputs, given: Input) -> Image.Image:
    """The photo with the masks of all its damages outlined; without a photo the mask alone."""
    if given.file is None or given.view is None:
        mask = given.region if given.mask is None else given.mask
        assert mask is not None
        picture, mask = Image.fromarray(mask * np.uint8(255)), np.zeros_like(mask)
    else:
        picture, damages = placed_damages(inputs, given)
        mask = given.view.mask if damages is None else damages
    shown = picture.convert("RGB")
    shown.thumbnail((SIDE, SIDE))
    marks = Image.fromarray((mask > 0) * np.uint8(255)).resize(shown.size, Image.Resampling.BOX)
    return outline(shown, np.asarray(marks))
