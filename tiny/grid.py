"""The pixel grid that pictures are drawn on, and smooth noise on it.

A picture under work is planar float32 (3, S, S) in [0, 1]: planes broadcast several times faster than
interleaved RGB. Lengths are in units of half the picture's side, x to the right, y down, the origin in the
middle.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Generator = np.random.Generator
Point = tuple[float, float]


class Grid(NamedTuple):
    """Pixel centres: x and y (S, S) float32; `pixel` is the side of a pixel in the same units."""

    x: Array
    y: Array
    pixel: float


@lru_cache(maxsize=8)
def make_grid(size: int) -> Grid:
    """The grid of a size x size picture, spanning [-1, 1]; read-only, for it is shared."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return Grid(x, y, 2.0 / size)


def place(grid: Grid, x: float, y: float, angle: float = 0.0, scale: float = 1.0) -> Grid:
    """`grid` as seen by an object at (x, y), turned by `angle` radians and drawn `scale` times its size."""
    c, s = math.cos(angle) / scale, math.sin(angle) / scale
    dx, dy = grid.x - x, grid.y - y
    return Grid(c * dx + s * dy, c * dy - s * dx, grid.pixel / scale)


def coverage(distance: Array, width: float) -> Array:
    """Share of each pixel inside the shape, in [0, 1]; `width` is a pixel's side, or more for a soft edge."""
    return np.clip(0.5 - distance * (1.0 / width), 0.0, 1.0)


def polar(grid: Grid) -> tuple[Array, Array]:
    """Radius and angle in radians (-pi, pi] of every pixel about the grid's origin."""
    return np.sqrt(grid.x * grid.x + grid.y * grid.y), np.arctan2(grid.y, grid.x)


@lru_cache(maxsize=64)
def _spline_weights(size: int, cells: int) -> Array:
    """(size, cells + 3) weights of a uniform cubic B-spline."""
    position = (np.arange(size) + 0.5) * cells / size
    first = position.astype(int)
    t = position - first
    columns = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    weights = np.zeros((size, cells + 3), np.float32)
    for k, column in enumerate(columns):
        weights[np.arange(size), first + k] = column / 6
    return weights


def smooth_noise(rng: Generator, size: int, cells: int, cells_y: int | None = None) -> Array:
    """(size, size) smooth random field of about unit deviation, `cells` bumps across, `cells_y` down."""
    across, down = _spline_weights(size, cells), _spline_weights(size, cells_y or cells)
    knots = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    return 2.0 * (down @ knots @ across.T)


def to_uint8(image: Array) -> Array:
    """(3, S, S) float in [0, 1], clipped, to (S, S, 3) uint8."""
    return np.ascontiguousarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))
