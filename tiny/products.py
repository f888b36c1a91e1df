"""Undamaged products for the procedural pictures: random family, backdrop, pose, colour and light."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tiny.families import (
    HUES,
    TONES,
    Brush,
    Family,
    bottle_cap,
    chance,
    colour,
    flat_plate,
    gear,
    nut,
    pick,
    plain_ring,
    round_glass,
    round_plate,
    tube,
)
from tiny.grid import Array, Generator, coverage, make_grid, place
from tiny.light import glow, side_light
from tiny.surface import structure
from tiny.textures import fabric, lattice, marble, wood

BACKGROUNDS = ("on-white", "on-grey", "on-dark", "on-colour")


class Product(NamedTuple):
    """A drawn product; distances (S, S) are in half picture sides, negative inside."""

    image: Array  # (3, S, S)
    behind: Array  # (3, S, S): the picture without the product
    body: Array  # distance to the material
    hole: Array | None  # distance to its opening
    light: float  # the direction the light comes from, radians
    words: tuple[str, ...]  # tone, hue, detail, family
    background: str


def background(rng: Generator, size: int, kind: str) -> Array:
    """A backdrop (3, S, S), one of BACKGROUNDS, slightly brighter on one side."""
    grid = make_grid(size)
    if kind == "on-white":
        base: Array = np.full(3, rng.uniform(0.92, 1.0), np.float32)
    elif kind == "on-colour":
        base = colour(rng, pick(rng, list(HUES)), pick(rng, list(TONES)))
    else:
        base = colour(rng, "grey", "dark") if kind == "on-dark" else 0.85 * colour(rng, "grey", "light")
    fall = float(rng.uniform(0.0, 0.04 if kind == "on-white" else 0.25))
    angle = float(rng.uniform(0, 2 * math.pi))
    return np.clip(base[:, None, None] * side_light(grid, fall, angle), 0.0, 1.0)


# name: (family, share of the pictures, smallest and largest scale)
FAMILIES: dict[str, tuple[Family, float, float, float]] = {
    "ring": (plain_ring, 0.24, 0.45, 0.92),
    "glass": (round_glass, 0.14, 0.5, 0.92),
    "vessel": (round_glass, 0.06, 0.82, 0.93),
    "disc": (round_plate, 0.10, 0.45, 0.92),
    "cap": (bottle_cap, 0.06, 0.5, 0.9),
    "plate": (flat_plate, 0.10, 0.45, 0.8),
    "tube": (tube, 0.08, 0.6, 0.9),
    "nut": (nut, 0.06, 0.5, 0.95),
    "gear": (gear, 0.04, 0.5, 0.92),
    "fabric": (fabric, 0.03, 1.0, 1.0),
    "lattice": (lattice, 0.03, 0.8, 1.3),
    "wood": (wood, 0.03, 1.0, 1.0),
    "marble": (marble, 0.03, 1.0, 1.0),
}
TEXTURES = ("fabric", "lattice", "wood", "marble")
STRUCTURED = 0.5  # share of the products with fine structure on their surface


def draw_product(rng: Generator, size: int) -> Product:
    """A random product on a random backdrop. Dark glass on a light one is called "vessel", not "glass"."""
    shares = np.cumsum([share for _, share, _, _ in FAMILIES.values()])
    name = list(FAMILIES)[min(int(np.searchsorted(shares, rng.random() * shares[-1])), len(shares) - 1)]
    family, _, smallest, largest = FAMILIES[name]
    tone, hue = pick(rng, list(TONES)), pick(rng, ["grey", "grey", "brown", *HUES])
    kind = str(rng.choice(BACKGROUNDS, p=(0.42, 0.2, 0.15, 0.23)))
    if name == "vessel":
        tone, hue, kind = "dark", pick(rng, ["grey", "brown", "blue", "green"]), "on-white"
    elif name == "glass":
        tone = "light" if kind in ("on-white", "on-grey") else pick(rng, ["mid", "light"])
    behind = background(rng, size, kind)
    scale, light = float(rng.uniform(smallest, largest)), float(rng.uniform(-math.pi, math.pi))
    upright = name == "tube" or name in TEXTURES
    turn = float(rng.uniform(-math.pi, math.pi))
    if upright:
        turn = (math.pi / 2) * int(rng.integers(2)) + 0.1 * float(rng.normal())
    shift = max(0.03, 0.3 * (0.95 - scale))
    x, y = rng.uniform(-shift, shift, 2).tolist()
    grid = place(make_grid(size), x, y, turn, scale)
    image = behind.copy()
    if name not in TEXTURES and kind != "on-dark":
        image *= 1.0 - float(rng.uniform(0.0, 0.3)) * glow(grid, 0.05, 0.08, 1.15)  # contact shadow
    body, hole, detail = family(Brush(rng, image, grid, colour(rng, hue, tone), light))
    fine = rng.spawn(1)[0]  # its own stream: structure changes no other choice
    if chance(fine, STRUCTURED):
        structure(fine, grid, image, coverage(body, grid.pixel), "glass" in name or name == "vessel")
    if upright and name not in ("marble", "lattice"):
        detail = "horizontal" if (abs(math.cos(turn)) > 0.7) == (name == "tube") else "vertical"
    return Product(
        image,
        behind,
        body * scale,
        None if hole is None else hole * scale,
        light,
        (tone, hue, detail, name),
        kind,
    )
