"""The demo's second product: drawn bolts that lie at any angle, intact or damaged on one of their parts.

Lengths along and across a bolt are shares of half its length: u from -1 at the head to 1 at the tip, and v.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from tiny.dirt import BLACK, WHITE, lay_speck
from tiny.grid import Array, Generator, Grid, coverage, make_grid, place, smooth_noise, to_uint8
from tiny.light import facets, hsv, paint, side_light
from tiny.shapes import box, segment, shard

CLASSES = ("bent_tip", "contamination", "scratched_head", "torn_thread", "good")
PARTS = ("head", "shank", "thread", "tip")
# The part that a damage belongs to; contamination lies on any.
PART_OF = {"bent_tip": "tip", "scratched_head": "head", "torn_thread": "thread"}
HEAD, SHANK, THREAD, POINT = -0.68, -0.2, 0.7, 0.86  # where parts end, and where the thread runs out
THICK, THIN, PITCH, DEPTH = 0.31, 0.14, 0.085, 0.035  # radii of head and shank; the thread
BEND = 0.6  # where a bent tip begins to leave the axis
OUTSIDE = 0.25  # share of the bolts that lie partly outside the picture
LENS = 0.004  # standard deviation of the blur, of the picture's side
METALS = ((0.60, 0.05), (0.11, 0.35), (0.58, 0.12), (0.08, 0.18))  # hue, saturation: steel, brass, zinc, ..


class Bolt(NamedTuple):
    """A bolt under work: image and ground (3, S, S) float32, the bolt's grid, its metal, the distance (S, S)
    to its outline."""

    image: Array
    ground: Array
    grid: Grid
    metal: Array
    body: Array


def _ground(rng: Generator, size: int) -> Array:
    """(3, S, S) a light table, brighter on one side, with faint stains."""
    tint = float(rng.uniform(0.72, 0.94)) * (1.0 + rng.uniform(-0.02, 0.02, 3).astype(np.float32))
    light = side_light(make_grid(size), float(rng.uniform(0.0, 0.12)), float(rng.uniform(-math.pi, math.pi)))
    light += 0.01 * smooth_noise(rng, size, 6)
    return np.clip(tint[:, None, None] * light, 0.0, 1.0)


def _pose(rng: Generator, size: int, damage: str) -> Grid:
    """The grid of a bolt of any angle and size. Of some one end lies outside, never the damaged one."""
    turn, scale = float(rng.uniform(-math.pi, math.pi)), float(rng.uniform(0.55, 0.92))
    along = np.array([math.cos(turn), math.sin(turn)])
    room = 0.97 - scale * (np.abs(along) + THICK * np.abs(along[::-1]))
    centre = rng.uniform(-1.0, 1.0, 2) * np.maximum(room, 0.0)
    end, over, outside = float(rng.choice([-1.0, 1.0])), float(rng.uniform(0.1, 0.5)), rng.random() < OUTSIDE
    if damage in PART_OF:
        end = 1.0 if PART_OF[damage] == "head" else -1.0
    if outside:
        inside = ((1.0 - end * np.sign(along) * centre) / np.maximum(np.abs(along), 1e-9)).min()
        centre = centre + end * along * (inside - scale + over * scale)
    return place(make_grid(size), float(centre[0]), float(centre[1]), turn, scale)


def _bent(grid: Grid, bend: float) -> Grid:
    """The grid of a bolt whose tip leaves the axis by `bend`."""
    away = np.maximum(grid.x - BEND, 0.0) * (1.0 / (1.0 - BEND))
    return grid._replace(y=grid.y - bend * away * away)


def _outline(grid: Grid) -> Array:
    """Distance (S, S) to the bolt, roughly: a head, a shank, the teeth of a thread and a blunt point."""
    u, v = grid.x, np.abs(grid.y)
    head = box(grid._replace(x=u - 0.5 * (HEAD - 1.0)), 0.5 * (HEAD + 1.0), THICK, 0.05)
    turns = u * (1.0 / PITCH) + 0.5 * (grid.y > 0)  # a helix: the teeth of one side stand between the other's
    teeth = DEPTH * 2.0 * np.abs(turns - np.floor(turns) - 0.5) * ((u > SHANK) & (u < POINT))
    radius = np.minimum(THIN + teeth, THIN - (u - POINT) * 0.7)
    return np.minimum(head, np.maximum(v - radius, np.maximum(HEAD - 0.05 - u, u - 1.0)))


def _metal(rng: Generator, image: Array, grid: Grid, colour: Array, light: float) -> None:
    """Paint the bolt's faces on `image` in place; light: where it comes from across the bolt, -1 to 1."""
    u, v = grid.x, grid.y
    shine, gloss = 0.35 * light, float(rng.uniform(0.25, 0.6))
    across = np.clip(v * (1.0 / (THIN + 0.5 * DEPTH)), -1.0, 1.0)
    level = 0.35 + 0.65 * np.sqrt(1.0 - np.square(0.9 * across - 0.3 * light).clip(0.0, 1.0))
    level += gloss * np.exp(-np.square((across - shine) * (1.0 / 0.22)))
    ridge = np.cos((u + 0.25 * PITCH * across) * (2.0 * math.pi / PITCH))
    level *= 1.0 + float(rng.uniform(0.3, 0.45)) * ridge * ((u > SHANK) & (u < POINT))
    third = THICK / 2.0  # a hexagon from its side: the middle face is twice as wide as the others
    sides = (0.75 - 0.3 * light, 1.0, 0.75 + 0.3 * light)
    face = np.where(v < -third, sides[0], np.where(v > third, sides[2], sides[1]))
    face = face * (1.0 - 0.35 * np.exp(np.abs(u - HEAD) * (-1.0 / 0.03)))  # the edge towards the shank
    level = np.where(u < HEAD, face, level)
    level = level * (1.0 + 0.03 * smooth_noise(rng, u.shape[0], 40))
    bright = 0.3 * np.maximum(level - 1.0, 0.0)
    paint(image, np.clip(colour[:, None, None] * level + bright, 0.0, 1.0),
          coverage(_outline(grid), grid.pixel))


def _bolt(rng: Generator, size: int, damage: str, bend: float) -> tuple[Bolt, Bolt]:
    """The same bolt whole, and with its tip bent by `bend`."""
    ground, grid = _ground(rng, size), _pose(rng, size, damage)
    hue, saturation = METALS[int(rng.integers(len(METALS)))]
    colour = hsv(hue + 0.01 * float(rng.normal()), saturation, float(rng.uniform(0.3, 0.5)))
    light = float(rng.uniform(-1.0, 1.0))
    offset, depth = rng.uniform(-0.08, 0.08, 2).tolist(), float(rng.uniform(0.15, 0.45))
    surface, bolts = int(rng.integers(2**32)), []
    for own in (grid, _bent(grid, bend)) if bend else (grid,):
        image, body = ground.copy(), _outline(own)
        shadow = coverage(_outline(place(own, *offset)) - 0.02, 0.12)
        paint(image, BLACK, depth * shadow * (body > 0.0))
        _metal(np.random.default_rng(surface), image, own, colour, light)
        bolts.append(Bolt(image, ground, own, colour, body))
    return bolts[0], bolts[-1]._replace(image=bolts[-1].image.copy())


def _scratch_head(rng: Generator, bolt: Bolt) -> Array:
    """Two to four bright gouges across the head; returns where (S, S)."""
    u, spread = float(rng.uniform(-0.88, -0.8)), float(rng.uniform(-0.6, 0.6))
    v, region = float(rng.uniform(-0.12, 0.12)), np.zeros_like(bolt.body)
    inside = coverage(bolt.body, bolt.grid.pixel) * (bolt.grid.x < HEAD)
    for k in range(int(rng.integers(2, 5))):
        angle, reach = spread + 0.5 * math.pi + 0.25 * float(rng.normal()), float(rng.uniform(0.12, 0.22))
        x, y = u + 0.06 * (k - 1.5), v + 0.04 * float(rng.normal())
        dx, dy = reach * math.cos(angle), reach * math.sin(angle)
        line = segment(bolt.grid, (x - dx, y - dy), (x + dx, y + dy)) - float(rng.uniform(0.016, 0.026))
        paint(bolt.image, BLACK, 0.5 * coverage(line - 0.012, 0.02) * inside)
        paint(bolt.image, WHITE, float(rng.uniform(0.75, 0.95)) * coverage(line, bolt.grid.pixel) * inside)
        region = np.maximum(region, coverage(line - 0.012, bolt.grid.pixel) * inside)
    return region


def _tear_thread(rng: Generator, bolt: Bolt) -> Array:
    """Tear teeth off one side of the thread, and leave rough metal; returns where (S, S)."""
    grid, side = bolt.grid, float(rng.choice([-1.0, 1.0]))
    middle = float(rng.uniform(-0.05, 0.5))
    bite = np.minimum.reduce([shard(place(grid, middle + 0.08 * k, side * THIN, 0.0), rng, 0.16)
                              for k in (-1, 0, 1)])
    region = coverage(np.maximum(bite, side * grid.y - 1.6 * THIN), grid.pixel)
    region *= coverage(np.abs(grid.x - 0.25) - 0.42, grid.pixel)
    within = region * coverage(bolt.body, grid.pixel)
    level = 0.15 + 0.85 * facets(place(grid, middle, side * THIN), rng, 0.2, int(rng.integers(7, 11)))
    paint(bolt.image, np.clip((0.4 + bolt.metal)[:, None, None] * level, 0.0, 1.0), within)
    paint(bolt.image, 0.8 * bolt.ground, within * coverage(0.8 * THIN - side * grid.y, 2.0 * grid.pixel))
    return region


def _contaminate(rng: Generator, bolt: Bolt) -> Array:
    """Lay one piece of dirt anywhere on the bolt, where the picture shows it; returns where (S, S)."""
    inside = coverage(bolt.body, bolt.grid.pixel)
    there = np.flatnonzero(bolt.body[8:-8, 8:-8] < -0.04)
    row, column = np.divmod(int(rng.choice(there)), bolt.body.shape[1] - 16)
    x, y = (float(axis[row + 8, column + 8]) for axis in (bolt.grid.x, bolt.grid.y))
    return lay_speck(rng, bolt.image, place(bolt.grid, x, y), float(rng.uniform(0.12, 0.2)), inside)


DAMAGES = {"contamination": _contaminate, "scratched_head": _scratch_head, "torn_thread": _tear_thread}


def _drawn(damage: str, seed: int, size: int) -> tuple[Bolt, Bolt, Array]:
    """The bolt whole, the damaged one, and where the damage is (S, S) bool."""
    rng = np.random.default_rng([CLASSES.index(damage), seed])
    bend = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.16, 0.3)) * (damage == "bent_tip")
    whole, bolt = _bolt(rng, size, damage, bend)
    if damage in DAMAGES:
        region = DAMAGES[damage](rng, bolt) > 0.5
    else:  # both where the tip is and where it was
        region = ((whole.body < 0.0) | (bolt.body < 0.0)) & (bolt.grid.x > THREAD) & (damage != "good")
    return whole, bolt, region


def draw_bolt(damage: str, seed: int, size: int = 256, *, before: bool = False) -> tuple[Array, Array]:
    """Image (S, S, 3) uint8 and mask (S, S) uint8: class index + 1 in the damage, 0 elsewhere.

    A pure function of `damage`, one of CLASSES, and `seed`. before: the image is of the undamaged bolt.
    """
    whole, bolt, region = _drawn(damage, seed, size)
    image = (whole if before else bolt).image
    focus = gaussian_filter(image, (0, LENS * size, LENS * size), mode="nearest")
    return to_uint8(focus), np.where(region, CLASSES.index(damage) + 1, 0).astype(np.uint8)


def bolt_parts(damage: str, seed: int, size: int = 256) -> Array:
    """(S, S) uint8: the part of the undamaged bolt that each pixel shows, 1 + its index in PARTS; 0 off it.
    """
    whole, _, _ = _drawn(damage, seed, size)
    part = 1 + np.digitize(whole.grid.x, (HEAD, SHANK, THREAD))
    return np.where(whole.body < 0.0, part, 0).astype(np.uint8)
