"""The undamaged products of the procedural pictures: a random family, backdrop, pose, colour and light."""

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
from tiny.shapes import Array, Generator, glow, make_grid, place
from tiny.textures import fabric, lattice, marble, wood

BACKGROUNDS = ("on-white", "on-grey", "on-dark", "on-colour")


class Product(NamedTuple):
    """A drawn product; distances (S, S) are in half picture sides, negative inside."""

    image: Array  # (3, S, S)
    behind: Array  # (3, S, S): what shows where the product is missing
    body: Array  # distance to the material
    hole: Array | None  # distance to its opening
    light: float  # the direction the light comes from, radians
    words: tuple[str, ...]  # tone, hue, detail, family
    background: str


def background(rng: Generator, size: int, kind: str) -> Array:
    """(3, S, S) backdrop of one of BACKGROUNDS with a slight fall of light across it."""
    grid = make_grid(size)
    if kind == "on-white":
        base = np.full(3, rng.uniform(0.92, 1.0), np.float32)
    elif kind == "on-colour":
        base = colour(rng, pick(rng, list(HUES)), pick(rng, list(TONES)))
    else:
        base = colour(rng, "grey", "dark") if kind == "on-dark" else 0.85 * colour(rng, "grey", "light")
    fall = float(rng.uniform(0.0, 0.04 if kind == "on-white" else 0.25))
    angle = float(rng.uniform(0, 2 * math.pi))
    light = 1.0 + fall * (math.cos(angle) * grid.x + math.sin(angle) * grid.y)
    return np.clip(base[:, None, None] * light, 0.0, 1.0)


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


def draw_product(rng: Generator, size: int) -> Product:
    """A random product on a random backdrop; dark glass on a light one is a "vessel", never a "glass"."""
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
    grid = place(make_grid(size), *rng.uniform(-shift, shift, 2).tolist(), turn, scale)
    image = behind.copy()
    if name not in TEXTURES and kind != "on-dark":
        image *= 1.0 - float(rng.uniform(0.0, 0.3)) * glow(grid, 0.05, 0.08, 1.15)  # contact shadow
    body, hole, detail = family(Brush(rng, image, grid, colour(rng, hue, tone), light))
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
