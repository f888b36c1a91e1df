"""The damages of the procedural pictures: notches, chips, cracks, scratches, stains, dirt, films, dents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tiny.families import HUES, TONES, chance, colour, pick
from tiny.grid import Array, Generator, Grid, coverage, make_grid, place, smooth_noise
from tiny.light import facets, mean_colour, paint
from tiny.products import Product
from tiny.shapes import blob, convex, disc, polyline, shard, walk


class Spot(NamedTuple):
    """The place of a damage: a grid about it, with x along `angle`, and the distance it may extend to."""

    grid: Grid
    x: float
    y: float
    angle: float  # into the material for a spot on an edge, any direction elsewhere
    extent: float


# Paints on the picture (3, S, S) in place; returns the region (S, S) in [0, 1] and a word for its look.
Damage = Callable[[Generator, Array, Product, Spot], tuple[Array, str]]


def _visible(rng: Generator, image: Array, region: Array, hues: list[str],
             tones: list[str]) -> tuple[Array, str, str]:
    """A colour that contrasts with `image` in `region`, with its hue and tone words."""
    there = mean_colour(image, region)
    best, best_gap = (np.zeros(3, np.float32), hues[0], tones[0]), -1.0
    for _ in range(6):
        hue, tone = pick(rng, hues), pick(rng, tones)
        candidate = colour(rng, hue, tone)
        gap = float(np.abs(candidate - there).mean())
        if gap > best_gap:
            best, best_gap = (candidate, hue, tone), gap
        if best_gap > 0.25:
            break
    return best


def _inside(product: Product, pixel: float) -> Array:
    """(S, S) share of each pixel that is material or opening, on which dirt can lie."""
    whole = product.body if product.hole is None else np.minimum(product.body, product.hole)
    return coverage(whole, pixel)


def _shatter(rng: Generator, image: Array, grid: Grid, region: Array, radius: float, low: float,
             high: float) -> None:
    """Fill `region` with flat facets of brightness `low` to `high`, in the tint that it had."""
    there = mean_colour(image, region)
    level = low + (high - low) * facets(grid, rng, radius, int(rng.integers(5, 9)))
    tint = 1.0 + 0.5 * (there - there.mean())
    paint(image, tint.astype(np.float32)[:, None, None] * level, region)


def notch(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A bite out of the edge that shows the backdrop or bright or dark facets: round, a V, or ragged."""
    style = rng.random()
    if style < 0.25:
        bite = disc(spot.grid, 0.8 * spot.extent)
    elif style < 0.4:  # a V that points inwards
        side = math.pi / 2 - float(rng.uniform(0.35, 0.8))
        apex = place(spot.grid, 1.1 * spot.extent, 0.0)
        bite = convex(apex, [side, -side, math.pi], [0, 0, 2.4 * spot.extent])
    else:
        centres = (rng.uniform(-0.5, 0.5, (3, 2)) * spot.extent).tolist()
        bite = np.minimum.reduce([shard(place(spot.grid, *at), rng, 0.85 * spot.extent) for at in centres])
    region = coverage(np.maximum(bite, product.body), spot.grid.pixel)
    look = pick(rng, ["missing", "bright", "dark"])
    if look == "missing":
        paint(image, product.behind * float(rng.uniform(0.9, 1.0)), region)
        if style >= 0.4:  # a dark or pale edge along the fracture
            edge = region * np.exp(-np.abs(bite) * (0.5 / spot.grid.pixel))
            level = float(rng.uniform(0.05, 0.2) if chance(rng, 0.5) else rng.uniform(0.85, 1.0))
            paint(image, np.full(3, level, np.float32), 0.8 * edge)
    else:
        low, high = (0.35, 1.0) if look == "bright" else (0.0, 0.45)
        _shatter(rng, image, spot.grid, region, spot.extent, low, high)
    return region, look


def chip(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A flake broken off the edge, with bright or dark facets."""
    deeper = place(spot.grid, 0.4 * spot.extent, 0)
    bite = np.minimum(shard(spot.grid, rng, spot.extent), shard(deeper, rng, spot.extent))
    region = coverage(np.maximum(bite, product.body), spot.grid.pixel)
    look = "dark" if chance(rng, 0.25) else "bright"
    low, high = (0.55, 1.0) if look == "bright" else (0.0, 0.35)
    _shatter(rng, image, spot.grid, region, spot.extent, low, high)
    return region, look


def crack(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A thin line with up to two forks."""
    start = (spot.x, spot.y)
    trunk = walk(rng, start, spot.angle, 2.2 * spot.extent, int(rng.integers(3, 6)), 0.5, 0.0)
    grid = make_grid(image.shape[1])
    distance = polyline(grid, trunk)
    for _ in range(int(rng.integers(0, 3))):
        fork = trunk[int(rng.integers(1, len(trunk)))]
        branch = walk(rng, fork, spot.angle + float(rng.choice([-0.8, 0.8])), spot.extent, 2, 0.4, 0.0)
        distance = np.minimum(distance, polyline(grid, branch))
    half = float(rng.uniform(0.012, 0.031))
    region = coverage(distance - half, grid.pixel) * coverage(product.body, grid.pixel)
    rgb, _, tone = _visible(rng, image, region, ["grey"], ["dark", "light"])
    paint(image, rgb, region)
    return region, "bright" if tone == "light" else "dark"


def scratch(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A slightly bent, thin streak."""
    bend = float(rng.uniform(1.5, 20.0)) * spot.extent  # radius of curvature
    across = np.abs(disc(spot.grid, bend, 0.0, bend))
    half = float(rng.uniform(0.010, 0.022))
    distance = np.maximum(across - half, np.abs(spot.grid.x) - 1.3 * spot.extent)
    distance = np.maximum(distance, np.abs(spot.grid.y) - 1.5 * spot.extent)
    region = coverage(distance, 1.3 * spot.grid.pixel) * coverage(product.body, spot.grid.pixel)
    rgb, _, tone = _visible(rng, image, region, ["grey"], ["light", "light", "dark"])
    paint(image, rgb, float(rng.uniform(0.75, 1.0)) * region)
    return region, "bright" if tone == "light" else "dark"


def stain(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A soft patch of another colour."""
    soft = float(rng.uniform(0.06, 0.14))
    region = coverage(blob(spot.grid, rng, 0.8 * spot.extent), soft) * coverage(product.body, spot.grid.pixel)
    rgb, hue, _ = _visible(rng, image, region, list(HUES), list(TONES))
    paint(image, rgb, float(rng.uniform(0.55, 0.9)) * region)
    return region, hue


def blobs(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """One to four pieces of dirt."""
    count, size = int(rng.choice([1, 1, 2, 3, 4])), image.shape[1]
    radius = spot.extent * (0.7 if count == 1 else 0.5)
    drift = rng.uniform(-0.9, 0.9, (count, 2)) * spot.extent * (count > 1)
    spread = rng.uniform(0.6, 1.1, count)
    parts = [
        blob(place(spot.grid, *at), rng, radius * float(s), 0.25)
        for at, s in zip(drift.tolist(), spread, strict=True)
    ]
    distance = np.minimum.reduce(parts)
    region = coverage(distance, 1.5 * spot.grid.pixel) * _inside(product, spot.grid.pixel)
    hues = ["brown", "brown", "grey", "grey", *HUES]
    rgb, hue, _ = _visible(rng, image, region, hues, list(TONES))
    relief = 1.0 + 0.25 * np.clip(distance * (1.0 / radius) + 0.3, -1, 1) + 0.12 * smooth_noise(rng, size, 9)
    paint(image, np.clip(rgb[:, None, None] * relief, 0, 1), region)
    return region, hue


def fiber(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A thread that lies on the product."""
    bend = float(rng.uniform(0.15, 0.6) * rng.choice([-1, 1]))
    start = (spot.x - spot.extent * math.cos(spot.angle), spot.y - spot.extent * math.sin(spot.angle))
    grid = make_grid(image.shape[1])
    line = polyline(grid, walk(rng, start, spot.angle - 2.5 * bend, 2.4 * spot.extent, 6, 0.15, bend))
    half = float(rng.uniform(0.014, 0.028))
    there = _inside(product, grid.pixel)
    region = coverage(line - half, grid.pixel) * there
    rgb, hue, _ = _visible(rng, image, region, list(HUES), list(TONES))
    paint(image, np.zeros(3, np.float32), 0.2 * coverage(line - half - 0.02, 0.05) * there)  # its shadow
    paint(image, rgb, region)
    return region, hue


def film(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A translucent flap over part of the product."""
    flap = place(spot.grid, 0.5 * spot.extent, 0.3 * spot.extent)
    distance = np.minimum(shard(spot.grid, rng, spot.extent), shard(flap, rng, 0.6 * spot.extent))
    region = coverage(distance, 1.5 * spot.grid.pixel) * _inside(product, spot.grid.pixel)
    rgb, hue, _ = _visible(rng, image, region, ["grey", *HUES], list(TONES))
    fold = np.clip(spot.grid.x * (1.0 / spot.extent), -1.0, 1.0)
    paint(image, rgb, (float(rng.uniform(0.55, 0.8)) + 0.15 * fold) * region)
    edge = coverage(np.abs(distance) - spot.grid.pixel, spot.grid.pixel)
    paint(image, np.clip(1.6 * rgb + 0.1, 0.0, 1.0), 0.6 * region * edge)
    return region, hue


def dent(rng: Generator, image: Array, product: Product, spot: Spot) -> tuple[Array, str]:
    """A bump or hollow, drawn by its light and shade."""
    r = np.sqrt(spot.grid.x**2 + (spot.grid.y * float(rng.uniform(1.0, 1.8))) ** 2) * (1.0 / spot.extent)
    turn = product.light - spot.angle
    slope = spot.grid.x * math.cos(turn) + spot.grid.y * math.sin(turn)
    inside = coverage(product.body, spot.grid.pixel)
    bulge = np.exp(-2.0 * r * r) * inside
    image += (float(rng.uniform(0.9, 1.5)) * rng.choice([-1, 1]) / spot.extent) * (slope * bulge)
    return coverage(r - 1.0, 0.1) * inside, "round"


# name: (how to draw it, on an edge?, extent of small, medium and large in half picture sides, share)
DAMAGES: dict[str, tuple[Damage, bool, tuple[float, float, float], float]] = {
    "notch": (notch, True, (0.18, 0.30, 0.48), 0.20),
    "chip": (chip, True, (0.10, 0.14, 0.20), 0.14),
    "crack": (crack, True, (0.16, 0.28, 0.45), 0.12),
    "scratch": (scratch, False, (0.18, 0.30, 0.48), 0.08),
    "stain": (stain, False, (0.15, 0.24, 0.38), 0.10),
    "blob": (blobs, False, (0.14, 0.22, 0.34), 0.20),
    "fiber": (fiber, False, (0.20, 0.30, 0.45), 0.08),
    "film": (film, False, (0.18, 0.27, 0.40), 0.07),
    "dent": (dent, False, (0.16, 0.24, 0.36), 0.05),
}
