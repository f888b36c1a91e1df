"""Shapes as signed distances (S, S), negative inside, in half picture sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tiny.grid import Array, Generator, Grid, Point, polar


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
