"""Masks and the holes made of them: grown, random, on the VAE's grid. In training and in sampling alike.

A mask says where the damage is, the hole where the picture is repainted: the mask and a margin around it, in
which the seam is hidden. Both are (H,W) uint8 in {0,1}.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose parts are loaded when they are first used
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

CELL = 8  # side of a latent cell in pixels
FEW_CELLS = 4  # a model has little to hold on to in a mask that covers fewer
MARGIN = 1 / 64  # of the hole beyond the mask, as a share of the picture's side: 8 pixels of 512
MARGINS = (1 / 128, 1 / 32)  # in training, where it differs from place to place: masks are never exact


def latent_mask(mask: Tensor) -> Tensor:
    """(B,1,H,W) in {0,1} -> (B,1,H/8,W/8): 1 where any pixel of the cell is: no scratch is lost."""
    return F.max_pool2d(mask, CELL)


def latent_cells(mask: np.ndarray) -> int:
    """The number of latent cells that a mask (H,W) touches, both sides multiples of 8."""
    return int(latent_mask(torch.from_numpy(mask[None, None].astype(np.float32))).sum())


def grow(mask: np.ndarray, reach: float | np.ndarray) -> np.ndarray:
    """`mask` and all within `reach` pixels of it, one number or one for each pixel (H,W)."""
    if not mask.any():
        return mask
    return (scipy.ndimage.distance_transform_edt(mask == 0) <= reach).astype(np.uint8)


def uneven(rng: np.random.Generator, side: int, low: float, high: float) -> np.ndarray:
    """(side, side) float32: smooth hills and valleys from `low` to `high`."""
    coarse = Image.fromarray(rng.uniform(low, high, (6, 6)).astype(np.float32))
    return np.clip(coarse.resize((side, side), Image.Resampling.BICUBIC), low, high)


def training_hole(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """A mask (S,S) grown by a margin that differs all around, as those that people draw do."""
    return grow(mask, uneven(rng, len(mask), *(share * len(mask) for share in MARGINS)))


def random_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    """(side, side), of no damage's shape: one to three ellipses, boxes or strokes, up to half the side."""
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
    if not mask.any():  # all of it fell beyond the border
        mask[side // 2, side // 2] = 1
    return mask
