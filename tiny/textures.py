"""Products that fill the picture: fabric, lattices, wood, marble."""

from __future__ import annotations

import numpy as np

from tiny.families import Brush
from tiny.grid import Array, coverage, smooth_noise


def _cover(brush: Brush, pattern: Array, contrast: float) -> tuple[Array, None, str]:
    """Fill the whole picture with the colour, modulated by `pattern` of about unit size."""
    level = 1.0 + contrast * pattern
    brush.image[:] = np.clip(brush.colour[:, None, None] * level + 0.15 * (level - 1.0), 0.0, 1.0)
    return np.full_like(pattern, -1.0), None, "plain"


def fabric(brush: Brush) -> tuple[Array, Array | None, str]:
    """Ribs that fill the picture."""
    grid, rng = brush.grid, brush.rng
    pattern = np.sin(grid.x * float(rng.uniform(12, 40)) + 0.5 * smooth_noise(rng, grid.x.shape[0], 3))
    return _cover(brush, pattern, float(rng.uniform(0.08, 0.3)))


def lattice(brush: Brush) -> tuple[Array, Array | None, str]:
    """A grid that fills the picture."""
    grid, rng = brush.grid, brush.rng
    pitch = float(rng.uniform(0.25, 0.6))
    width = pitch * float(rng.uniform(0.12, 0.3))
    lines = [np.abs(axis - pitch * np.round(axis * (1.0 / pitch))) - 0.5 * width for axis in (grid.x, grid.y)]
    bars = 2.0 * coverage(np.minimum(*lines), 1.5 * grid.pixel) - 1.0
    return _cover(brush, bars, float(rng.uniform(0.15, 0.4)))


def wood(brush: Brush) -> tuple[Array, Array | None, str]:
    """Grain that fills the picture."""
    grid, rng = brush.grid, brush.rng
    warp = smooth_noise(rng, grid.x.shape[0], 2, 4)
    return _cover(brush, np.sin(grid.x * float(rng.uniform(8, 22)) + float(rng.uniform(1, 3)) * warp), 0.2)


def marble(brush: Brush) -> tuple[Array, Array | None, str]:
    """Veins that fill the picture."""
    rng, size = brush.rng, brush.grid.x.shape[0]
    cloud = smooth_noise(rng, size, 3)
    veins = np.exp(-6.0 * np.abs(cloud + 0.4 * smooth_noise(rng, size, 7)))
    return _cover(brush, 0.3 * smooth_noise(rng, size, 5) - veins, 0.3)
