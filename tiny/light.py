"""Light and colour: facets, highlights and shade, and what lays them on a picture (3, S, S)."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from tiny.grid import Array, Generator, Grid
from tiny.shapes import wedge


def facets(grid: Grid, rng: Generator, radius: float, count: int) -> Array:
    """(S, S) brightness in [0, 1] of `count` flat facets about the origin, with straight smooth borders."""
    total = np.zeros_like(grid.x)
    value = np.zeros_like(grid.x)
    # A soft nearest-point rule: between two points the softmax of -distance^2 turns over along a straight
    # line, and this sharpness makes the turn a pixel or two wide.
    sharpness = 1.0 / (grid.pixel * radius)
    levels = rng.permutation(np.linspace(0.0, 1.0, count)).tolist()
    squares = []
    for x, y in rng.uniform(-radius, radius, (count, 2)).tolist():
        dx, dy = grid.x - x, grid.y - y
        squares.append(dx * dx + dy * dy)
    nearest = np.minimum.reduce(squares)
    for level, square in zip(levels, squares, strict=True):
        weight = np.exp((nearest - square) * sharpness)
        total += weight
        value += level * weight
    return value / total


def specular_arc(r: Array, theta: Array, radius: float, width: float, centre: float, spread: float) -> Array:
    """(S, S) strength in [0, 1] of a highlight on a circle, `spread` radians long and `width` wide."""
    across = (r - radius) * (1.0 / width)
    along = wedge(theta, centre, 0.0) * (1.0 / spread)
    return np.exp(-across * across - along * along)


def hsv(hue: float, saturation: float, value: float) -> Array:
    """RGB (3,) float32 of an HSV colour; any hue, as it is periodic with 1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0)), np.float32)


def glow(grid: Grid, x: float, y: float, radius: float) -> Array:
    """(S, S) soft round light in [0, 1] about (x, y)."""
    dx, dy = grid.x - x, grid.y - y
    return np.exp((dx * dx + dy * dy) * (-1.0 / (radius * radius)))


def side_light(grid: Grid, fall: float, angle: float) -> Array:
    """(S, S) light on an even surface: 1 in the middle, 1 + `fall` at the edge that faces `angle`."""
    return 1.0 + fall * (math.cos(angle) * grid.x + math.sin(angle) * grid.y)


def radial_profile(r: Array, table: Array, limit: float) -> Array:
    """Colours (3, S, S) read from `table` (3, N) by radius; its last column stands for `limit`."""
    last = table.shape[1] - 1
    return np.take(table, np.minimum(r * (last / limit), last).astype(np.intp), axis=1)


def paint(image: Array, colour: Array, alpha: Array) -> None:
    """Lay `colour`, (3,) or (3, S, S), over `image` (3, S, S) in place with opacity `alpha` (S, S)."""
    image += alpha * ((colour if colour.ndim == 3 else colour[:, None, None]) - image)


def mean_colour(image: Array, region: Array) -> Array:
    """The colour (3,) of `image` (3, S, S) in `region` (S, S), in [0, 1]."""
    return (image * region).sum((1, 2)) / max(float(region.sum()), 1e-6)


def lighten(image: Array, amount: Array) -> None:
    """Add white light (S, S), negative for shade, to `image` (3, S, S) in place."""
    image += amount


def bevel(image: Array, distance: Array, grid: Grid, alpha: Array, light: float, width: float,
          strength: float) -> None:
    """Lighten, in place, the edges of a shape that face the angle `light`; darken its other edges."""
    dy, dx = np.gradient(distance, grid.pixel)
    facing = dx * math.cos(light) + dy * math.sin(light)
    image += (strength * alpha) * facing * np.exp(np.minimum(distance, 0.0) * (1.0 / width))
