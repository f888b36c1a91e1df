"""Masks and holes: grown, random, and on the latent grid. Training and sampling use the same functions.

The mask is where the damage is. The hole is what is repainted: the mask and a margin around it, which hides
the seam. Both are (H,W) uint8 in {0,1}.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose parts are loaded when they are first used
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

CELL = 8  # side of a latent cell in pixels
FEW_CELLS = 4  # a mask of fewer latent cells is too small to be learnt well
SMALL_CELLS = 16  # damage of fewer is better seen in close views
MARGIN = 1 / 64  # of the hole beyond the mask, as a share of the image's side: 8 pixels of 512
MARGINS = (1 / 128, 1 / 32)  # in training, varying along the edge, because drawn masks are inexact


def latent_mask(mask: Tensor) -> Tensor:
    """(B,1,H,W) in {0,1} -> (B,1,H/8,W/8): 1 where any pixel of the cell is 1, so no scratch is lost."""
    return F.max_pool2d(mask, CELL)


def latent_cells(mask: np.ndarray, resolution: int | None = None) -> int:
    """The number of latent cells that the damage in a square mask (S,S) touches at `resolution` pixels, by
    default its own."""
    cells = (resolution or len(mask)) // CELL
    touched = np.zeros((cells, cells), bool)
    touched[tuple((np.argwhere(mask) * cells // len(mask)).T)] = True
    return int(touched.sum())


def grow(mask: np.ndarray, reach: float | np.ndarray) -> np.ndarray:
    """`mask` and all pixels within `reach` of it; reach: pixels, one number or one a pixel (H,W)."""
    if not mask.any():
        return mask
    return (scipy.ndimage.distance_transform_edt(mask == 0) <= reach).astype(np.uint8)


def uneven(rng: np.random.Generator, side: int, low: float, high: float) -> np.ndarray:
    """(side, side) float32: smooth random values from `low` to `high`."""
    coarse = Image.fromarray(rng.uniform(low, high, (6, 6)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)), low, high)


def training_hole(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask (S,S) grown by a margin that varies along its edge, as hand-drawn masks do."""
    return grow(mask, uneven(rng, len(mask), *(share * len(mask) for share in MARGINS)))


def random_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side) in {0,1}: one to three random ellipses, boxes or strokes, up to half the side."""
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        kind, extent = int(rng.integers(3)), side * math.exp(rng.uniform(math.log(0.05), math.log(0.5)))
        x, y = rng.uniform(0, side, 2)
        if kind == 2:
            points = np.cumsum([(x, y), *rng.normal(0, extent, (int(rng.integers(1, 5)), 2))], axis=0)
            draw.line(list(map(tuple, points)), fill=1, width=max(2, int(extent / 4)), joint="curve")
        else:
            half_width, half_height = extent / 2 * rng.uniform(0.4, 1, 2)
            shape = draw.ellipse if kind else draw.rectangle
            shape((x - half_width, y - half_height, x + half_width, y + half_height), fill=1)
    mask = np.array(picture)
    if not mask.any():  # every shape lies outside the image
        mask[side // 2, side // 2] = 1
    return mask
