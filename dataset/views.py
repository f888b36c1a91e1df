"""A photo at a small size, as placement sees it: brightness, edges, its object, what is around its damage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from dataset.foreground import find_object

SIDE = 128  # of the view
EDGES, BODY = 2.0, 60.0  # grey levels that edges and the object count as
CHANNELS = 3


class View(NamedTuple):
    """A photo at a small size: its channels (3,h,w) float32, its object (h,w) bool or None, the share of each
    pixel that is damage (h,w), photo pixels for each of its pixels, and the photo's (height, width)."""

    looks: np.ndarray
    object: np.ndarray | None
    damage: np.ndarray
    factor: float
    shape: tuple[int, int]


def view_of(photo: np.ndarray, damage: np.ndarray | None = None) -> View:
    """A photo (H,W,3) uint8 and its damage (H,W) in {0,1}, at a small size."""
    height, width = photo.shape[:2]
    factor = max(height, width) / SIDE
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), np.float32)
    share = np.zeros(size[::-1], np.float32)
    if damage is not None:
        share = np.asarray(Image.fromarray(damage).convert("F").resize(size, Image.Resampling.BOX))
    grey, region = small.mean(axis=2), find_object(small)
    edges = scipy.ndimage.gaussian_gradient_magnitude(grey, 1.0, mode="nearest")
    body = np.zeros_like(grey) if region is None else region
    return View(np.stack([grey, EDGES * edges, BODY * body]).astype(np.float32), region, share, factor,
                (height, width))


def middle_of(view: View) -> np.ndarray:
    """The middle (x, y) of a view's damage."""
    return np.argwhere(view.damage > 0).mean(axis=0)[::-1] + 0.5


def extent_of(view: View) -> float:
    """The side of a square as large as the box around a view's damage; 6 pixels at least."""
    y, x = np.nonzero(view.damage)
    return max(6.0, float(np.sqrt((np.ptp(x) + 1.0) * (np.ptp(y) + 1.0))))


def weights_of(view: View) -> np.ndarray:
    """(2,h,w) float32: how much each pixel counts around the damage and over the object, each of sum 1;
    without an object twice the same. The damage itself does not count, as the other photo has none."""
    away = scipy.ndimage.distance_transform_edt(view.damage == 0)
    around = np.exp(-np.square(away / (0.5 * extent_of(view)))) * (away > 0)
    over = around
    if view.object is not None:
        over = scipy.ndimage.binary_dilation(view.object, iterations=3) & (away > 0)
    return np.stack([each / max(each.sum(), 1e-6) for each in (around, over)]).astype(np.float32)
