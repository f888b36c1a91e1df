"""Drawing primitives: signed distances on a pixel grid, anti-aliasing, smooth noise, light and compositing.

A picture under work is planar float32 (3, S, S) in [0, 1]: planes broadcast several times faster than
interleaved RGB. Lengths are in units of half the picture's side, x to the right, y down, the origin in the
middle. A distance is negative inside its shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def disc(grid: Grid, radius: float, x: float = 0.0, y: float = 0.0) -> Array:
    """Distance to a disc about (x, y)."""
    dx, dy = grid.x - x, grid.y - y
    return np.sqrt(dx * dx + dy * dy) - radius


def ring(grid: Grid, inner: float, outer: float) -> Array:
    """Distance to the ring between two radii."""
    return np.abs(disc(grid, 0.5 * (inner + outer))) - 0.5 * (outer - inner)


def box(grid: Grid, half_width: float, half_height: float, corner: float = 0.0) -> Array:
    """Distance to a box whose corners are rounded by the radius `corner`."""
    dx, dy = np.abs(grid.x) - (half_width - corner), np.abs(grid.y) - (half_height - corner)
    outside_x, outside_y = np.maximum(dx, 0.0), np.maximum(dy, 0.0)
    outside = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    return outside + np.minimum(np.maximum(dx, dy), 0.0) - corner


def convex(grid: Grid, angles: Sequence[float], offsets: Sequence[float]) -> Array:
    """Distance to the convex polygon with sides facing `angles`, `offsets` away (too small at corners)."""
    sides = [math.cos(a) * grid.x + (math.sin(a) * grid.y - o) for a, o in zip(angles, offsets, strict=True)]
    return np.maximum.reduce(sides)


def regular_polygon(grid: Grid, sides: int, apothem: float) -> Array:
    """Distance to a regular polygon whose sides lie `apothem` from the origin."""
    return convex(grid, [2.0 * math.pi * k / sides for k in range(sides)], [apothem] * sides)


def shard(grid: Grid, rng: Generator, radius: float) -> Array:
    """Distance to a random angular fragment of 4 to 6 sides, within about `radius` of the origin."""
    sides = int(rng.integers(4, 7))
    turns = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * (2.0 * math.pi / sides)
    return convex(grid, turns.tolist(), (radius * rng.uniform(0.45, 1.0, sides)).tolist())


def blob(grid: Grid, rng: Generator, radius: float, roughness: float = 0.3) -> Array:
    """Distance (roughly) to an irregular rounded blob about the origin; `roughness` in [0, 0.5]."""
    r, theta = polar(grid)
    outline = np.full_like(r, radius)
    for k in range(2, 6):
        wave = np.cos(k * theta + float(rng.uniform(0, 2 * math.pi)))
        outline += float(radius * roughness * rng.normal() / k) * wave
    return r - np.maximum(outline, 0.4 * radius)


def segment(grid: Grid, a: Point, b: Point) -> Array:
    """Distance to the segment from a to b, which has no inside: subtract half a width."""
    ux, uy = b[0] - a[0], b[1] - a[1]
    px, py = grid.x - a[0], grid.y - a[1]
    along = np.clip((px * ux + py * uy) * (1.0 / max(ux * ux + uy * uy, 1e-9)), 0.0, 1.0)
    px -= along * ux
    py -= along * uy
    return np.sqrt(px * px + py * py)


def polyline(grid: Grid, points: Sequence[Point]) -> Array:
    """Distance to the line through `points`, which has no inside: subtract half a width."""
    return np.minimum.reduce([segment(grid, a, b) for a, b in zip(points, points[1:], strict=False)])


def walk(
    rng: Generator, start: Point, angle: float, length: float, steps: int, turn: float, bend: float
) -> list[Point]:
    """Points of a random walk; a step's direction varies by `turn` and drifts by `bend`, in radians."""
    points = [start]
    for _ in range(steps):
        step, heading = length / steps * float(rng.uniform(0.7, 1.3)), angle + turn * float(rng.normal())
        x, y = points[-1]
        points.append((x + step * math.cos(heading), y + step * math.sin(heading)))
        angle += bend
    return points


def wedge(theta: Array, centre: float, half_angle: float) -> Array:
    """Angular distance in radians to the sector about `centre`; times the radius it is an arc length."""
    return math.pi - np.abs(np.abs(theta - wrap(centre)) - math.pi) - half_angle


def wrap(angle: float) -> float:
    """The same angle in (-pi, pi]."""
    return math.atan2(math.sin(angle), math.cos(angle))


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


def glow(grid: Grid, x: float, y: float, radius: float) -> Array:
    """(S, S) soft round light in [0, 1] about (x, y)."""
    dx, dy = grid.x - x, grid.y - y
    return np.exp((dx * dx + dy * dy) * (-1.0 / (radius * radius)))


def radial_profile(r: Array, table: Array, limit: float) -> Array:
    """Colours (3, S, S) read from `table` (3, N) by radius; its last column stands for `limit`."""
    last = table.shape[1] - 1
    return np.take(table, np.minimum(r * (last / limit), last).astype(np.intp), axis=1)


def paint(image: Array, colour: Array, alpha: Array) -> None:
    """Lay `colour`, (3,) or (3, S, S), over `image` (3, S, S) in place with opacity `alpha` (S, S)."""
    image += alpha * ((colour if colour.ndim == 3 else colour[:, None, None]) - image)


def lighten(image: Array, amount: Array) -> None:
    """Add white light (S, S), negative for shade, to `image` (3, S, S) in place."""
    image += amount


def bevel(
    image: Array, distance: Array, grid: Grid, alpha: Array, light: float, width: float, strength: float
) -> None:
    """Lighten, in place, the edges of a shape that face the angle `light` of the picture, darken the rest."""
    dy, dx = np.gradient(distance, grid.pixel)
    facing = dx * math.cos(light) + dy * math.sin(light)
    image += (strength * alpha) * facing * np.exp(np.minimum(distance, 0.0) * (1.0 / width))


def to_uint8(image: Array) -> Array:
    """(3, S, S) float in [0, 1], clipped, to (S, S, 3) uint8."""
    return np.ascontiguousarray((np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8).transpose(1, 2, 0))
