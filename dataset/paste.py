"""The square of a photo that the model repaints, and pasting it back: nothing outside the seam changes.

Inside the mask the result is the model's. Across the margin around it (masks.MARGIN) it fades into the photo.
Beyond, every pixel is the photo's own, at the photo's own resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from dataset.augmentation import IDENTITY, close_box, prepare, shrink_factor, square_box, warp, warp_mask
from dataset.masks import MARGIN, grow, latent_cells
from runtime.errors import UserError

CROP = 3.0  # side of a close view, in extents of the damage
CLOSEST = 4  # a close view is at least 1/4 of the photo's shorter side: closer looks like another product


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


def make_view(photo: np.ndarray, mask: np.ndarray, resolution: int, name: str, *, close: bool = False,
              whole: bool = False) -> View:
    """The view of a photo (H,W,3) that holds its mask (H,W): the largest square, or a `close` one.

    Damage outside the square is cut off the mask. Raises DoesNotFit, naming the mask `name`, where nothing of
    it remains, or, with `whole`, where it does not fit.
    """
    box = _box(mask, resolution, close)
    top, left, side = box
    inside = np.zeros_like(mask)
    inside[top:top + side, left:left + side] = mask[top:top + side, left:left + side]
    if not inside.any() or (whole and (inside != mask).any()):
        raise DoesNotFit(f"{name}: its damage does not fit into a square of {side} pixels, the photo's "
                        "shorter side; cut up the photo or the mask")
    image = warp(prepare(photo, box, resolution), IDENTITY, resolution)
    region = warp_mask(prepare(inside, box, resolution), IDENTITY, resolution)
    return View(image, grow(region, MARGIN * resolution), inside, latent_cells(region), box, region)


def _box(mask: np.ndarray, resolution: int, close: bool) -> tuple[int, int, int]:
    """(top, left, side) of the view; the side is such that `prepare` shrinks it without a remainder."""
    top, left, side = close_box(mask, CROP, CLOSEST) if close else square_box(mask.shape, mask)
    rest = side % shrink_factor(side, resolution)
    return top + rest // 2, left + rest // 2, side - rest


def paste(photo: np.ndarray, view: View, painted: np.ndarray, *, seam: bool = True,
          match_colour: bool = False) -> Image.Image:
    """`painted` (R,R,3) uint8 put into its place in the photo (H,W,3); a grey photo stays grey.

    seam: fade at the mask's margin; without, the whole square is the model's. match_colour: first shift the
    painted image to the photo's mean colour in a ring outside the hole.
    """
    top, left, side = view.box
    place = np.s_[top:top + side, left:left + side]
    picture = np.asarray(Image.fromarray(painted).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    there = photo[place].astype(np.float32)
    away = scipy.ndimage.distance_transform_edt(view.mask[place] == 0) / max(1.0, MARGIN * side)  # in margins
    if match_colour:
        picture = _matched(picture, there, (away > 1) & (away < 4))
    share = np.clip(1 - away, 0, 1)[..., None] if seam else 1.0
    result = photo.copy()
    result[place] = np.clip(there + share * (picture - there), 0, 255).round()
    if (photo == photo[..., :1]).all():  # the mean of three equal levels is that level, exactly
        result = result.mean(axis=2).round().astype(np.uint8)
    return Image.fromarray(result)


def _matched(picture: np.ndarray, there: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """`picture` with the mean colour that `there` has on `ring` (all (S,S,..))."""
    return picture + there[ring].mean(axis=0) - picture[ring].mean(axis=0) if ring.any() else picture


def changes(before: np.ndarray, painted: np.ndarray, hole: np.ndarray) -> dict[str, float]:
    """How the model changed an image. before, painted: (R,R,3) uint8, both after the VAE; hole: (R,R).

    fidelity: the share of the squared change inside the hole, 0 to 1. change: the mean absolute change there,
    in levels of 255.
    """
    difference = painted.astype(np.float32) - before
    square = np.square(difference).sum(axis=2)
    inside = hole > 0
    return {"fidelity": round(float(square[inside].sum() / max(square.sum(), 1e-6)), 4),
            "change": round(float(np.abs(difference[inside]).mean()), 2)}
