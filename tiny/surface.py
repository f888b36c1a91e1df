"""Fine structure on drawn products: rings, knurls, brushed and cast metal, print, fibres, scratches, glass.

Each function returns light (S, S) to add to the picture, of about unit size. It is as fine as pixels allow:
an autoencoder that blurs loses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tiny.families import chance
from tiny.grid import Array, Generator, Grid, coverage, place, polar, smooth_noise
from tiny.light import radial_profile
from tiny.shapes import polyline, walk

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789abcdefghkmnprstuvwxyz-./ "


def pixels(grid: Grid, low: float, high: float, rng: Generator) -> float:
    """A random length between `low` and `high` pixels, in the grid's units."""
    return grid.pixel * float(np.exp(rng.uniform(math.log(low), math.log(high))))


def turned_rings(rng: Generator, grid: Grid) -> Array:
    """Concentric lines: even grooves, or uneven marks of a lathe."""
    r, _ = polar(grid)
    if chance(rng, 0.5):
        return np.cos(r * (2 * math.pi / pixels(grid, 2.5, 9, rng)))
    marks = rng.standard_normal(int(1.5 / pixels(grid, 1, 3, rng)) + 2).astype(np.float32)
    return radial_profile(r, marks[None], 1.5)[0]


def some_rings(rng: Generator, grid: Grid) -> Array:
    """A few thin bright or dark circles, as the edges of a bottle's neck, each stronger on one side."""
    r, theta = polar(grid)
    light = np.zeros_like(r)
    for _ in range(int(rng.integers(2, 9))):
        across = (r - float(rng.uniform(0.15, 1.0))) / pixels(grid, 0.6, 1.8, rng)
        side = 0.6 + 0.4 * np.cos(theta - float(rng.uniform(-math.pi, math.pi)))
        light += float(rng.uniform(-2.5, 2.5)) * np.exp(-across * across) * side
    return light


def knurl(rng: Generator, grid: Grid) -> Array:
    """Crossed or single ribs, straight or around the axis."""
    period = pixels(grid, 3, 10, rng)
    if chance(rng, 0.4):
        r, theta = polar(grid)
        inner = float(rng.uniform(0.3, 0.85))
        ribs = np.cos(theta * round(2 * math.pi * 0.8 / period))
        return 1.5 * ribs * coverage(np.abs(r - inner) - float(rng.uniform(0.05, 0.2)), grid.pixel)
    angle = float(rng.uniform(0, math.pi))
    ribs = np.cos(place(grid, 0, 0, angle).x * (2 * math.pi / period))
    if chance(rng, 0.6):
        ribs = np.maximum(ribs, np.cos(place(grid, 0, 0, angle + 1.2).x * (2 * math.pi / period)))
    return ribs


def brushed(rng: Generator, grid: Grid) -> Array:
    """Metal brushed in one direction or in circles, with the highlights that this gives."""
    size = grid.x.shape[0]
    length, count = int(rng.integers(2, 9)), int(rng.integers(size // 3, size))
    if chance(rng, 0.4):
        r, theta = polar(grid)
        rows = np.minimum(r * (count / 1.5), count - 1).astype(np.intp)
        columns = ((theta / (2 * math.pi) + 0.5) * 63).astype(np.intp)
        lines = smooth_noise(rng, 64, length, length) + rng.standard_normal((64, 64), dtype=np.float32) * 0.2
        marks = rng.standard_normal(count).astype(np.float32)
        fan = np.cos(2 * (theta - float(rng.uniform(0, math.pi))))
        return 0.7 * marks[rows] + 0.3 * lines[rows % 64, columns] + 1.5 * fan
    lines = smooth_noise(rng, size, length, count)
    return lines if chance(rng, 0.5) else lines.T


def cast(rng: Generator, grid: Grid) -> Array:
    """A rough surface lit from one side."""
    size = grid.x.shape[0]
    height = sum(smooth_noise(rng, size, cells) / cells**0.6
                 for cells in (size // 10, size // 5, size // 2) if cells)
    down, across = np.gradient(np.asarray(height))
    angle = float(rng.uniform(-math.pi, math.pi))
    light = math.cos(angle) * across + math.sin(angle) * down
    return light / max(float(light.std()), 1e-6)


def fibres(rng: Generator, grid: Grid) -> Array:
    """Many short threads."""
    light, half = np.zeros_like(grid.x), 0.5 * pixels(grid, 0.7, 1.4, rng)
    for _ in range(int(rng.integers(8, 28))):
        x, y, angle, length = rng.uniform((-1, -1, -math.pi, 0.1), (1, 1, math.pi, 0.6)).tolist()
        points = walk(rng, (x, y), angle, length, 3, 0.3, 0.2)
        light += float(rng.uniform(-2.5, 2.5)) * coverage(polyline(grid, points) - half, grid.pixel)
    return light


def scratches(rng: Generator, grid: Grid) -> Array:
    """Long thin straight lines, most in about one direction."""
    light, angle = np.zeros_like(grid.x), float(rng.uniform(0, math.pi))
    for _ in range(int(rng.integers(3, 25))):
        x, y = rng.uniform(-0.9, 0.9, 2).tolist()
        own = place(grid, x, y, angle + float(rng.normal()) * 0.2)
        line = np.maximum(np.abs(own.y) - 0.35 * grid.pixel, np.abs(own.x) - float(rng.uniform(0.05, 0.8)))
        light += float(rng.uniform(-2.5, 2.5)) * coverage(line, grid.pixel)
    return light


def letters(rng: Generator, grid: Grid) -> Array:
    """Lines of print, or a bar code."""
    size = grid.x.shape[0]
    sheet = Image.new("L", (size, size))
    pen = ImageDraw.Draw(sheet)
    y, end = int(rng.uniform(0.1, 0.5) * size), int(rng.uniform(0.5, 0.95) * size)
    if chance(rng, 0.25):
        for x in np.flatnonzero(rng.random(size) < 0.5).tolist():
            pen.line((x, y, x, end), 255)
    while y < end:
        height = int(rng.integers(max(size // 16, 7), max(size // 5, 8)))
        line = "".join(rng.choice(list(LETTERS), int(rng.integers(3, 18))))
        pen.text((int(rng.integers(0, size // 3)), y), line, 255, ImageFont.load_default(height))
        y += int(1.2 * height)
    angle = float(rng.choice([0, 0, 90, 180, 270])) + 5 * float(rng.normal())
    turned = sheet.rotate(angle, Image.Resampling.BILINEAR)
    return float(rng.choice([-3.0, 3.0])) * (np.asarray(turned, np.float32) / 255)


def streaks(rng: Generator, grid: Grid) -> Array:
    """Sharp edges in glass: thin spokes and arcs of light and shade."""
    r, theta = polar(grid)
    light = np.zeros_like(r)
    for _ in range(int(rng.integers(4, 16))):
        away = np.abs(np.angle(np.exp(1j * (theta - float(rng.uniform(-math.pi, math.pi))))))
        radius, reach = float(rng.uniform(0.2, 1.0)), float(rng.uniform(0.05, 0.3))
        if chance(rng, 0.5):
            line = np.maximum(away * r - 0.5 * pixels(grid, 0.7, 2, rng), np.abs(r - radius) - reach)
        else:
            line = np.maximum(np.abs(r - radius) - 0.5 * pixels(grid, 0.7, 2, rng), away - 4 * reach)
        light += float(rng.uniform(-3, 4)) * coverage(line, grid.pixel)
    return light


STRUCTURES: dict[str, Callable[[Generator, Grid], Array]] = {
    "rings": turned_rings, "circles": some_rings, "knurl": knurl, "brushed": brushed, "cast": cast,
    "fibres": fibres, "scratches": scratches, "letters": letters, "streaks": streaks}
GLASS = ("circles", "circles", "streaks")  # what glass shows


def structure(rng: Generator, grid: Grid, image: Array, where: Array, glass: bool) -> None:
    """Add one or two structures to `image` (3, S, S) in place, where `where` (S, S) in [0, 1] says.

    Dark colours get less light.
    """
    for _ in range(1 if chance(rng, 0.6) else 2):
        name = str(rng.choice(GLASS if glass and chance(rng, 0.8) else list(STRUCTURES)))
        strength = float(np.exp(rng.uniform(math.log(0.02), math.log(0.2))))
        light = (strength * STRUCTURES[name](rng, grid) * where).astype(np.float32)
        image += light * (0.35 + 0.65 * image)
