"""The square of a photo that the model repaints, and pasting it back: nothing outside the seam changes.

Inside the mask the result is the model's. Across the margin around it (masks.MARGIN) it fades into the photo.
Beyond, every pixel is the photo's own, at the photo's own resolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from dataset.augmentation import IDENTITY, prepare, shrink_factor, square_box, warp, warp_mask
from dataset.masks import MARGIN, grow, latent_cells
from dataset.windows import Box, around, draw_window, middle_window, places_of
from runtime.errors import UserError

VISIBLE = 16  # levels of 255 that a pixel must differ by to count as changed
RING = 4  # margins from the mask to where the ring ends in which colours are compared


class DoesNotFit(UserError):
    """A mask that cannot be placed on this photo; another one may fit."""


class View(NamedTuple):
    """A square of a photo as the model sees it."""

    image: np.ndarray  # (R,R,3) uint8
    hole: np.ndarray  # (R,R) in {0,1}, the damage and its margin
    mask: np.ndarray  # (H,W) in {0,1}, the damage within the square, in photo pixels
    cells: int  # latent cells that the damage touches
    box: tuple[int, int, int]  # where it was cut out: (top, left, side) in photo pixels
    region: np.ndarray  # (R,R) in {0,1}, the damage as the model sees it


def box_for(mask: np.ndarray, view: str, resolution: int, rng: np.random.Generator, *, whole: bool = False,
            anywhere: bool = False) -> Box:
    """The square in which a mask (H,W) is painted, as `view` shows damage in training (see windows.py).

    A close view is around one place of the mask, drawn by `rng`, or with `whole` around all of it; it lies in
    the middle of the view, or, with `anywhere`, where it might in training.
    """
    if view == "whole" or not mask.any():
        top, left, side = square_box(mask.shape, mask)
        rest = side % shrink_factor(side, resolution)  # so that `prepare` leaves no remainder
        return top + rest // 2, left + rest // 2, side - rest
    places = [around(mask)] if whole else places_of(mask, view, resolution)
    place = places[rng.integers(len(places))]
    return (draw_window(rng, view, mask.shape, resolution, place) if anywhere
            else middle_window(view, mask.shape, resolution, place))


def make_view(photo: np.ndarray, mask: np.ndarray, box: Box, resolution: int, name: str, *,
              whole: bool = False) -> View:
    """The view in `box` of a photo (H,W,3) and its mask (H,W).

    Damage outside is cut off the mask. Raises DoesNotFit, naming the mask `name`, where nothing of it
    remains, or, with `whole`, where not all of it is inside.
    """
    top, left, side = box
    inside = np.zeros_like(mask)
    inside[top:top + side, left:left + side] = mask[top:top + side, left:left + side]
    if not inside.any() or (whole and (inside != mask).any()):
        raise DoesNotFit(f"{name}: its damage does not fit into a square of {side} pixels, the photo's "
                        "shorter side; cut up the photo or the mask")
    image = warp(prepare(photo, box, resolution), IDENTITY, resolution)
    region = warp_mask(prepare(inside, box, resolution), IDENTITY, resolution)
    return View(image, grow(region, MARGIN * resolution), inside, latent_cells(region), box, region)


def paste(photo: np.ndarray, view: View, painted: np.ndarray, *, seam: bool = True,
          match_colour: bool = False, white: int = 255) -> Image.Image:
    """`painted` (R,R,3) uint8 put into its place in the photo, which is changed; a grey photo stays grey.

    photo: (H,W,3) uint8, or grey (H,W) of levels up to `white`. seam: fade at the mask's margin; without, the
    whole square is the model's. match_colour: first shift the painted image to the photo's mean colour in a
    ring outside the hole.
    """
    top, left, side = view.box
    margin = max(1.0, MARGIN * side)
    rows, columns = _changed(view, math.ceil((RING if match_colour else 1) * margin), seam)
    there = photo[rows, columns].astype(np.float32) * np.float32(255 / white)
    there = there if photo.ndim == 3 else there[..., None]
    square = Image.fromarray(painted).resize((side, side), Image.Resampling.BICUBIC)
    picture = np.asarray(square.crop((columns.start - left, rows.start - top, columns.stop - left,
                                      rows.stop - top)), np.float32)
    share = np.ones((*there.shape[:2], 1), np.float32)
    if seam or match_colour:
        away = scipy.ndimage.distance_transform_edt(view.mask[rows, columns] == 0) / margin  # in margins
        picture = _matched(picture, there, (away > 1) & (away < RING)) if match_colour else picture
        share = np.clip(1 - away, 0, 1)[..., None] if seam else share
    mixed = np.clip(there + share * (picture - there), 0, 255)
    if photo.ndim == 2:
        levels = (mixed.mean(axis=2) * (white / 255)).round()
        photo[rows, columns] = np.where(share[..., 0] > 0, levels, photo[rows, columns])
        return Image.fromarray(photo)
    if all(np.array_equal(photo[..., 0], photo[..., i]) for i in (1, 2)):
        photo = photo[..., 0].copy()
        photo[rows, columns] = mixed.round().mean(axis=2).round()
        return Image.fromarray(photo)
    photo[rows, columns] = mixed.round()
    return Image.fromarray(photo)


def touches(view: View, there: np.ndarray, *, seam: bool = True) -> bool:
    """Whether pasting would change a pixel that is not 0 in `there` (H,W)."""
    margin = max(1.0, MARGIN * view.box[2])
    area = _changed(view, math.ceil(margin), seam)
    if not seam or not there[area].any():
        return bool(there[area].any())
    away = scipy.ndimage.distance_transform_edt(view.mask[area] == 0)
    return bool(((away < margin) & (there[area] != 0)).any())


def _changed(view: View, reach: int, seam: bool) -> tuple[slice, slice]:
    """The rows and columns of the photo that pasting reads: those within `reach` of the mask, or, without a
    seam, of the whole square."""
    top, left, side = view.box
    if not seam:
        return slice(top, top + side), slice(left, left + side)
    first, start, end, stop = around(view.mask)
    return (slice(max(top, first - reach), min(top + side, end + reach)),
            slice(max(left, start - reach), min(left + side, stop + reach)))


def _matched(picture: np.ndarray, there: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """`picture` with the mean colour that `there` has on `ring` (all (S,S,..))."""
    return picture + there[ring].mean(axis=0) - picture[ring].mean(axis=0) if ring.any() else picture


def changes(before: np.ndarray, painted: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """How the model changed an image. before, painted: (R,R,3) uint8, both after the VAE; hole: (R,R).

    fidelity: the share of the squared change inside the hole, 0 to 1. change: the mean absolute change there,
    in levels of 255. iou: intersection over union of the hole and the pixels that visibly changed.
    """
    difference = painted.astype(np.float32) - before
    square = np.square(difference).sum(axis=2)
    inside, changed = hole > 0, np.abs(difference).mean(axis=2) > VISIBLE
    return {"fidelity": round(float(square[inside].sum() / max(square.sum(), 1e-6)), 4),
            "change": round(float(np.abs(difference[inside]).mean()), 2),
            "iou": round(float((changed & inside).sum() / max((changed | inside).sum(), 1)), 4)}
