"""Dirt of the demo's pictures: lumps and fibres that lie on a product."""

from __future__ import annotations

import math

import numpy as np

from tiny.grid import Array, Generator, Grid, coverage, smooth_noise
from tiny.light import hsv, mean_colour, paint
from tiny.shapes import blob, polyline, walk

# Hue, saturation and value: sand, rust, lint, soil, moss.
DIRT = ((0.10, 0.35, 0.80), (0.08, 0.60, 0.45), (0.60, 0.04, 0.92), (0.06, 0.70, 0.12), (0.28, 0.45, 0.60))
BLACK, WHITE = np.zeros(3, np.float32), np.ones(3, np.float32)


def _colour(rng: Generator, there: Array) -> Array:
    """A colour of dirt (3,) that stands out from the colour `there` (3,)."""
    tries = [hsv(h + rng.normal(0, 0.02), s, v * float(rng.uniform(0.85, 1.1))) for h, s, v in DIRT]
    seen = [c for c in tries if float(np.abs(c - there).mean()) > 0.18]
    return seen[int(rng.integers(len(seen)))] if seen else WHITE


def _speck(rng: Generator, grid: Grid, radius: float) -> Array:
    """Distance (S, S) to a piece of dirt about the origin: an irregular lump, or a fibre."""
    if rng.random() < 0.7:
        return blob(grid, rng, radius, 0.25)
    length, bend, angle = rng.uniform((0.36, -0.4, -math.pi), (0.52, 0.4, math.pi)).tolist()
    start = (-0.5 * length * math.cos(angle), -0.5 * length * math.sin(angle))
    strand = polyline(grid, walk(rng, start, angle - 2.5 * bend, length, 6, 0.2, bend))
    return strand - float(rng.uniform(0.026, 0.036))


def lay_speck(rng: Generator, image: Array, grid: Grid, radius: float, inside: Array) -> Array:
    """Lay a piece of dirt about the grid's origin on `image` (3, S, S) in place, where `inside` (S, S) says;
    returns where (S, S)."""
    distance = _speck(rng, grid, radius)
    region = coverage(distance, 1.5 * grid.pixel) * inside
    there = mean_colour(image, region)
    relief = 1.0 - 0.3 * np.clip(distance * (1.0 / radius) + 0.3, -1.0, 1.0)
    relief += 0.1 * smooth_noise(rng, inside.shape[0], 14)
    paint(image, BLACK, 0.35 * coverage(distance - 0.02, 0.08) * inside)  # its shadow
    paint(image, np.clip(_colour(rng, there)[:, None, None] * relief, 0.0, 1.0), region)
    return region
