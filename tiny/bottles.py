"""The demo's pictures: drawn glass bottles seen from above, intact, broken or contaminated.

Radii inside a bottle are shares of its outer radius.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from tiny.dirt import WHITE, lay_speck
from tiny.grid import Array, Generator, Grid, coverage, make_grid, place, polar, smooth_noise, to_uint8
from tiny.light import facets, glow, hsv, paint, radial_profile, side_light, specular_arc
from tiny.shapes import disc, shard, wedge

CLASSES = ("broken_large", "broken_small", "contamination", "good")
OPENING, LIP, LENS = 0.47, 0.76, 0.005  # outer radii; standard deviation of the blur, of the picture's side
BANDS = ((0.91, 0.07, 0.8), (0.79, 0.05, -0.3), (0.64, 0.08, 0.7), (0.50, 0.04, -0.4))  # radius, width, light


class Bottle(NamedTuple):
    """A bottle under work: image and backdrop (3, S, S) float32, the bottle's grid, its glass colour."""

    image: Array
    backdrop: Array
    grid: Grid
    glass: Array


def _backdrop(rng: Generator, size: int) -> Array:
    """(3, S, S) light table: nearly white, a little brighter on one side."""
    grid = make_grid(size)
    tint = float(rng.uniform(0.91, 0.98)) * (1.0 + rng.uniform(-0.01, 0.01, 3).astype(np.float32))
    light = side_light(grid, float(rng.uniform(0.0, 0.05)), float(rng.uniform(-math.pi, math.pi)))
    return np.clip(tint[:, None, None] * light, 0.0, 1.0)


def _wall(rng: Generator, glass: Array) -> Array:
    """(3, 1024) colours of the glass by radius from 0 to 1.05: bands of light in the wall, lip and bore."""
    radius, level = np.linspace(0.0, 1.05, 1024), np.full(1024, 0.8)
    for centre, width, height in BANDS:
        offset = (radius - centre - 0.008 * rng.normal()) / (width * rng.uniform(0.8, 1.25))
        level += height * rng.uniform(0.6, 1.3) * np.exp(-offset * offset)
    return (glass[:, None] * level + 0.10 * np.maximum(level - 1.0, 0.0)).astype(np.float32)


def _bottom(rng: Generator, image: Array, grid: Grid, hue: float) -> None:
    """The bottle's bottom, out of focus: a mid-tone, brighter towards a blurry centre."""
    dim = hsv(hue, float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.22, 0.36)))
    bright = np.clip(dim * float(rng.uniform(1.5, 2.2)), 0.0, 1.0)
    x, y = rng.uniform(-0.07, 0.07, 2).tolist()
    light = glow(grid, x, y, float(rng.uniform(0.22, 0.34)))
    edge = disc(grid, OPENING)
    shade = 1.0 - 0.5 * np.exp(np.minimum(edge, 0.0) * (1.0 / 0.05))  # the bore's own shadow
    paint(image, (dim[:, None, None] + light * (bright - dim)[:, None, None]) * shade, coverage(edge, 0.02))


def _highlights(rng: Generator, image: Array, grid: Grid, refraction: Array) -> None:
    """Coloured refraction along the lip, and specular arcs on the wall and the lip."""
    r, theta = polar(grid)
    turn = float(rng.uniform(-math.pi, math.pi))
    line = np.exp(-(((r - LIP) * (1.0 / 0.04)) ** 2))
    paint(image, refraction, line * (0.4 + 0.3 * np.cos(theta * 2.0 + turn)))
    for radius in rng.uniform((0.90, 0.66, 0.57), (0.95, 0.72, 0.64)).tolist():
        width, spread, strength = rng.uniform((0.03, 0.2, 0.25), (0.05, 0.6, 0.7)).tolist()
        arc = specular_arc(r, theta, radius, max(width, grid.pixel), turn + float(rng.normal()), spread)
        paint(image, WHITE, strength * arc)


def _bottle(rng: Generator, size: int) -> Bottle:
    """An intact bottle near the middle of a light table; glass, pose and light vary."""
    backdrop = _backdrop(rng, size)
    x, y = rng.uniform(-0.04, 0.04, 2).tolist()
    scale = float(rng.uniform(0.84, 0.92))
    grid = place(make_grid(size), x, y, 0.0, scale)
    hue, saturation = ((0.07, 0.45), (0.09, 0.35), (0.36, 0.30), (0.60, 0.25))[int(rng.integers(4))]
    hue += 0.02 * float(rng.normal())
    glass = hsv(hue, saturation, float(rng.uniform(0.15, 0.24)))
    backdrop *= 1.0 - 0.2 * glow(grid, 0.03, 0.05, 1.02)  # the bottle's soft shadow
    image, (r, theta) = backdrop.copy(), polar(grid)
    mirrored = 1.0 + 0.14 * np.cos(2.0 * theta + float(rng.uniform(0.0, 2.0 * math.pi)))
    mirrored += 0.05 * smooth_noise(rng, size, 5)
    wall = np.clip(radial_profile(r, _wall(rng, glass), 1.05) * mirrored, 0.0, 1.0)
    paint(image, wall, coverage(r - 1.0, 2.5 * grid.pixel))
    _bottom(rng, image, grid, hue + 0.03 * float(rng.normal()))
    _highlights(rng, image, grid, hsv(0.07 + 0.03 * float(rng.normal()), 0.6, float(rng.uniform(0.5, 0.75))))
    return Bottle(image, backdrop, grid, glass)


def _shatter(rng: Generator, bottle: Bottle, grid: Grid, region: Array, radius: float, low: float,
             high: float) -> None:
    """Fill `region` (S, S) with facets of glass from `low` to `high` brightness."""
    level = low + (high - low) * facets(grid, rng, radius, int(rng.integers(6, 10)))
    tint = bottle.glass / bottle.glass.mean()
    paint(bottle.image, np.clip((0.5 + 0.5 * tint)[:, None, None] * level, 0.0, 1.0), region)


def _fracture(rng: Generator, grid: Grid, centre: float, arc: float, through: bool) -> tuple[Array, Array]:
    """Distances (S, S) to a jagged sector of the rim, `arc` radians long, and to its missing part."""
    r, theta = polar(grid)
    beside = wedge(theta, centre, 0.0)
    clockwise = wedge(theta, centre + 0.5 * math.pi, 0.0) < 0.5 * math.pi
    along = np.where(clockwise, beside, -beside)
    turns = np.linspace(-0.6 * arc, 0.6 * arc, 7)
    ends = 0.5 * arc * (1.0 + 0.2 * rng.uniform(-1.0, 1.0, 7))
    rims = (1.08 if through else 0.82) + 0.07 * rng.uniform(-1.0, 1.0, 7)
    brinks = 0.82 + 0.07 * rng.uniform(-1.0, 1.0, 7)
    half = np.interp(along + 3.0 * r, np.linspace(1.0, 3.4, 7), ends).astype(np.float32)
    outer = np.interp(along, turns, rims).astype(np.float32)
    outline = np.maximum.reduce([(beside - half) * r, r - outer, OPENING - 0.01 - r])
    return outline, np.maximum(outline, np.interp(along, turns, brinks).astype(np.float32) - r)


def _break_large(rng: Generator, bottle: Bottle) -> Array:
    """Break 35 to 80 degrees of the rim, half the time out through the wall; returns where (S, S)."""
    grid, centre, through = bottle.grid, float(rng.uniform(-math.pi, math.pi)), bool(rng.random() < 0.5)
    arc = math.radians(float(rng.uniform(38.0 if through else 50.0, 78.0)))
    outline, gap = _fracture(rng, grid, centre, arc, through)
    region = coverage(np.maximum(outline, disc(grid, 1.0)), 1.2 * grid.pixel)
    middle = place(grid, 0.65 * math.cos(centre), 0.65 * math.sin(centre))
    _shatter(rng, bottle, middle, region, 0.3, 0.02, 0.95)
    if through:
        paint(bottle.image, bottle.backdrop, coverage(gap, 1.2 * grid.pixel))
        outline = np.maximum(outline, -gap)
    edge = np.exp(-np.abs(outline) * (1.0 / max(0.014, grid.pixel)))
    paint(bottle.image, WHITE, float(rng.uniform(0.4, 0.8)) * edge * region)
    return region


def _break_small(rng: Generator, bottle: Bottle) -> Array:
    """Chip the lip in one place; returns where (S, S)."""
    angle, radius = float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.57, 0.70))
    grid = place(bottle.grid, radius * math.cos(angle), radius * math.sin(angle), angle)
    reach = float(rng.uniform(0.13, 0.17))
    parts = [shard(place(grid, 0.0, float(rng.uniform(-0.5, 0.5)) * reach), rng, reach) for _ in range(2)]
    outline = np.minimum(np.minimum(*parts), disc(grid, 0.6 * reach))
    region = coverage(outline, 1.2 * grid.pixel)
    paint(bottle.image, 0.3 * bottle.glass, 0.7 * coverage(outline - 0.02, 0.05))  # the dark bed of the chip
    _shatter(rng, bottle, grid, region, reach, float(rng.uniform(0.3, 0.5)), 1.0)
    return region


def _contaminate(rng: Generator, bottle: Bottle) -> Array:
    """Lay 1 to 3 pieces of dirt into the opening; returns where (S, S)."""
    count = int(rng.integers(1, 4))
    inside = coverage(disc(bottle.grid, OPENING - 0.03), bottle.grid.pixel)
    total, first = np.zeros_like(inside), float(rng.uniform(-math.pi, math.pi))
    for k in range(count):
        angle, away = first + 2.0 * math.pi * k / count, float(rng.uniform(0.08, 0.26))
        at = place(bottle.grid, away * math.cos(angle), away * math.sin(angle))
        radius = float(rng.uniform(0.14, 0.22)) * (1.0 if count == 1 else 0.8)
        region = lay_speck(rng, bottle.image, at, radius, inside)
        total = np.maximum(total, region)
    return total


DAMAGES = {"broken_large": _break_large, "broken_small": _break_small, "contamination": _contaminate}


def draw_bottle(damage: str, seed: int, size: int = 256, *, before: bool = False) -> tuple[Array, Array]:
    """Image (S, S, 3) uint8 and mask (S, S) uint8: class index + 1 in the damage, 0 elsewhere.

    A pure function of `damage`, one of CLASSES, and `seed`. before: the image is of the undamaged bottle.
    """
    index = CLASSES.index(damage)
    rng = np.random.default_rng([index, seed])
    bottle = _bottle(rng, size)
    whole, mask = bottle.image.copy(), np.zeros((size, size), np.uint8)
    if damage in DAMAGES:
        mask[DAMAGES[damage](rng, bottle) > 0.5] = index + 1
    focus = gaussian_filter(whole if before else bottle.image, (0, LENS * size, LENS * size), mode="nearest")
    return to_uint8(focus), mask
