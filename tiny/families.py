"""Draw each family of products: rings, glass, discs, caps, plates, tubes, nuts, gears."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tiny.grid import Array, Generator, Grid, coverage, polar
from tiny.light import bevel, glow, hsv, lighten, paint, radial_profile, specular_arc
from tiny.shapes import box, disc, regular_polygon, ring

TONES = {"dark": (0.08, 0.30), "mid": (0.38, 0.62), "light": (0.72, 0.96)}  # HSV value
HUES = {  # HSV hue and saturation
    "grey": (0.60, 0.06),
    "brown": (0.07, 0.50),
    "red": (0.99, 0.70),
    "orange": (0.09, 0.80),
    "yellow": (0.15, 0.70),
    "green": (0.36, 0.55),
    "blue": (0.60, 0.60),
    "purple": (0.78, 0.45),
}
DETAILS = ("plain", "thin", "thick", "concentric", "glassy", "perforated", "horizontal", "vertical")


class Brush(NamedTuple):
    """The arguments of a family: the picture, the product's own grid, its colour, the light's direction."""

    rng: Generator
    image: Array
    grid: Grid
    colour: Array
    light: float


Family = Callable[[Brush], tuple[Array, Array | None, str]]  # -> body, hole (product's units), detail


def colour(rng: Generator, hue: str, tone: str) -> Array:
    """A random RGB colour (3,) float32 that fits the two words."""
    h, s = HUES[hue]
    value = float(rng.uniform(*TONES[tone]))
    saturation = min(s * float(rng.uniform(0.6, 1.2)), 0.95)
    return hsv(h + 0.02 * float(rng.normal()), saturation, value)


def pick(rng: Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of `options`, with equal probability."""
    return options[int(rng.integers(len(options)))]


def chance(rng: Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def highlights(brush: Brush, inner: float, outer: float, alpha: Array, count: int) -> None:
    """A few specular arcs between two radii."""
    r, theta = polar(brush.grid)
    rng = brush.rng
    for _ in range(count):
        radius, width, spread = rng.uniform((inner, 0.02, 0.2), (outer, 0.07, 0.9)).tolist()
        centre = brush.light + float(rng.normal())
        arc = specular_arc(r, theta, radius, max(width, brush.grid.pixel), centre, spread)
        paint(brush.image, np.ones(3, np.float32), alpha * arc * float(rng.uniform(0.4, 0.95)))


def opening(brush: Brush, radius: float) -> None:
    """Paint the inside of a round hole: the backdrop, or a dark or bright blurry bottom."""
    rng, kind = brush.rng, brush.rng.random()
    if kind < 0.3:
        return
    bottom = colour(rng, pick(rng, ["grey", "brown", "blue", "green"]), "dark" if kind < 0.6 else "mid")
    centre = np.clip(bottom * float(rng.uniform(1.0, 2.5)), 0.0, 1.0) if chance(rng, 0.7) else bottom * 0.5
    x, y = (radius * rng.uniform(-0.2, 0.2, 2)).tolist()
    light = glow(brush.grid, x, y, radius * float(rng.uniform(0.4, 0.8)))
    paint(
        brush.image,
        bottom[:, None, None] + light * (centre - bottom)[:, None, None],
        coverage(disc(brush.grid, radius), 1.5 * brush.grid.pixel),
    )


def glass(brush: Brush, inner: float) -> None:
    """A ring of glass: soft concentric bands of light and shade from `inner` to 1."""
    rng, steps = brush.rng, 768
    radius = np.linspace(0.0, 1.05, steps)
    level = np.full(steps, 0.7)
    for _ in range(int(rng.integers(4, 8))):
        offset = (radius - rng.uniform(inner, 1.0)) / rng.uniform(0.02, 0.10)
        level += rng.uniform(-0.5, 0.9) * np.exp(-offset * offset)
    table = (brush.colour[:, None] * level + 0.08 * np.maximum(level - 1.0, 0.0)).astype(np.float32)
    if chance(rng, 0.5):  # a thin line of refracted colour
        offset = (radius - rng.uniform(inner, 1.0)) / 0.02
        tint = colour(rng, pick(rng, ["orange", "brown", "blue"]), "mid")[:, None]
        table += (0.7 * np.exp(-offset * offset)).astype(np.float32) * (tint - table)
    r, _ = polar(brush.grid)
    alpha = coverage(ring(brush.grid, inner, 1.0), 2.0 * brush.grid.pixel)
    paint(brush.image, np.clip(radial_profile(r, table, 1.05), 0.0, 1.0), alpha)


def round_glass(brush: Brush) -> tuple[Array, Array | None, str]:
    """A vessel seen from above."""
    inner = float(brush.rng.uniform(0.35, 0.75))
    body = ring(brush.grid, inner, 1.0)
    opening(brush, inner)
    glass(brush, inner)
    highlights(brush, inner, 1.0, coverage(body, brush.grid.pixel), int(brush.rng.integers(1, 5)))
    return body, disc(brush.grid, inner), "glassy"


def plain_ring(brush: Brush) -> tuple[Array, Array | None, str]:
    """A ring, thin or broad, some with concentric waves."""
    rng, grid = brush.rng, brush.grid
    thin, concentric = chance(rng, 0.35), chance(rng, 0.3)
    inner = float(rng.uniform(0.68, 0.84) if thin else rng.uniform(0.3, 0.64))
    body = ring(grid, inner, 1.0)
    alpha = coverage(body, grid.pixel)
    opening(brush, inner)
    paint(brush.image, brush.colour, alpha)
    if concentric:
        r, _ = polar(grid)
        wave = np.cos((r - inner) * (2.0 * math.pi * float(rng.integers(2, 4)) / (1.0 - inner)))
        lighten(brush.image, (float(rng.uniform(0.06, 0.16)) * alpha) * wave)
    bevel(brush.image, body, grid, alpha, brush.light, (1.0 - inner) * 0.4, float(rng.uniform(0.0, 0.3)))
    highlights(brush, inner, 1.0, alpha, int(rng.integers(0, 3)))
    return body, disc(grid, inner), "concentric" if concentric else ("thin" if thin else "thick")


def round_plate(brush: Brush) -> tuple[Array, Array | None, str]:
    """A disc with a glow, some with a groove."""
    rng, grid = brush.rng, brush.grid
    body = disc(grid, 1.0)
    alpha = coverage(body, grid.pixel)
    paint(brush.image, brush.colour, alpha)
    x, y = rng.uniform(-0.4, 0.4, 2).tolist()
    lighten(brush.image, (float(rng.uniform(0.0, 0.25)) * alpha) * (glow(grid, x, y, 0.8) - 0.5))
    concentric = chance(rng, 0.5)
    if concentric:
        groove = disc(grid, float(rng.uniform(0.4, 0.85)))
        bevel(brush.image, -np.abs(groove), grid, alpha, brush.light, 0.06, float(rng.uniform(0.15, 0.4)))
    bevel(brush.image, body, grid, alpha, brush.light, 0.12, float(rng.uniform(0.05, 0.35)))
    return body, None, "concentric" if concentric else "plain"


def bottle_cap(brush: Brush) -> tuple[Array, Array | None, str]:
    """A crown cap."""
    rng, grid = brush.rng, brush.grid
    r, theta = polar(grid)
    ridges = np.cos(theta * int(rng.integers(14, 25)))
    body = r - (0.97 + 0.03 * ridges)
    alpha = coverage(body, grid.pixel)
    paint(brush.image, brush.colour, alpha)
    top = float(rng.uniform(0.7, 0.85))
    lighten(brush.image, (0.12 * alpha * coverage(top - r, 0.05)) * ridges)
    bevel(brush.image, -np.abs(r - top), grid, alpha, brush.light, 0.08, float(rng.uniform(0.15, 0.35)))
    return body, None, "plain"


def flat_plate(brush: Brush) -> tuple[Array, Array | None, str]:
    """A rectangular plate with up to four holes."""
    rng, grid = brush.rng, brush.grid
    half_height = float(rng.uniform(0.45, 1.0))
    body = box(grid, 1.0, half_height, float(rng.uniform(0.03, 0.35)))
    holes = int(rng.choice([0, 0, 1, 2, 4]))
    spread_x, spread_y = (0.6, 0.55 * half_height) if holes > 1 else (0.0, 0.0)
    hole = None
    if holes:
        radius = float(rng.uniform(0.1, 0.2) if holes > 1 else rng.uniform(0.15, 0.4 * half_height))
        folded = Grid(np.abs(grid.x), np.abs(grid.y) if holes == 4 else grid.y, grid.pixel)
        hole = disc(folded, radius, spread_x, spread_y if holes == 4 else 0.0)
        body = np.maximum(body, -hole)
    alpha = coverage(body, grid.pixel)
    paint(brush.image, brush.colour, alpha)
    lighten(brush.image, (float(rng.uniform(0.0, 0.12)) * alpha) * grid.x)
    bevel(brush.image, body, grid, alpha, brush.light, 0.08, float(rng.uniform(0.05, 0.35)))
    return body, hole, "perforated" if holes else "plain"


def tube(brush: Brush) -> tuple[Array, Array | None, str]:
    """A rod that crosses the picture, lit from the side."""
    rng, grid = brush.rng, brush.grid
    radius = float(rng.uniform(0.25, 0.6))
    body = box(grid, 1.15, radius, float(rng.uniform(0.0, 0.15)))
    alpha = coverage(body, grid.pixel)
    height = grid.y * (1.0 / radius)
    shine = height - float(rng.uniform(-0.5, 0.5))
    shade = np.sqrt(np.maximum(1.05 - height * height, 0.05))
    paint(brush.image, brush.colour[:, None, None] * shade + 0.5 * np.exp(-12.0 * shine * shine), alpha)
    return body, None, "plain"


def nut(brush: Brush) -> tuple[Array, Array | None, str]:
    """A nut of four, six or eight sides."""
    rng, grid = brush.rng, brush.grid
    hole = disc(grid, float(rng.uniform(0.3, 0.6)))
    body = np.maximum(regular_polygon(grid, int(rng.choice([4, 6, 6, 8])), 0.9), -hole)
    alpha = coverage(body, grid.pixel)
    paint(brush.image, brush.colour, alpha)
    bevel(brush.image, body, grid, alpha, brush.light, 0.1, float(rng.uniform(0.1, 0.4)))
    return body, hole, "plain"


def gear(brush: Brush) -> tuple[Array, Array | None, str]:
    """A toothed wheel."""
    rng, grid = brush.rng, brush.grid
    r, theta = polar(grid)
    hole = disc(grid, float(rng.uniform(0.15, 0.5)))
    teeth = np.clip(2.0 * np.cos(theta * int(rng.integers(8, 15))), -1.0, 1.0)
    body = np.maximum(r - (0.9 + float(rng.uniform(0.05, 0.1)) * teeth), -hole)
    alpha = coverage(body, grid.pixel)
    paint(brush.image, brush.colour, alpha)
    bevel(brush.image, body, grid, alpha, brush.light, 0.1, float(rng.uniform(0.05, 0.3)))
    return body, hole, "plain"
