"""The training pictures of the embedded base: random products with random damages, and words for both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tiny.damages import DAMAGES, Spot
from tiny.families import DETAILS, HUES, TONES, chance
from tiny.grid import Array, Generator, make_grid, place, to_uint8
from tiny.products import BACKGROUNDS, FAMILIES, TEXTURES, Product, draw_product

SIZES = ("small", "medium", "large")
PLACES = ("rim", "hole", "centre", "side")
LOOKS = ("missing", "bright", "round")
VOCABULARY: tuple[str, ...] = (
    *("<start>", "<end>", *TONES, *HUES, *DETAILS, *FAMILIES),
    *("good", *SIZES, *LOOKS, *DAMAGES, *PLACES, *BACKGROUNDS),
)


class Sample(NamedTuple):
    """A training picture: image (S, S, 3) uint8, mask (S, S) bool of the damage, words from VOCABULARY."""

    image: Array
    mask: Array
    words: tuple[str, ...]


def draw(seed: int, size: int = 128) -> Sample:
    """The picture of `seed`. About a quarter are undamaged and have the word "good".

    The order of the words: tone, hue, detail, product; "good" or size, look, damage, place; backdrop.
    """
    return draw_pair(seed, size)[1]


def draw_pair(seed: int, size: int = 128) -> tuple[Array, Sample]:
    """The undamaged picture (S, S, 3) uint8, and the sample drawn over it."""
    rng = np.random.default_rng(seed)
    product = draw_product(rng, size)
    clean = np.clip(product.image, 0.0, 1.0)
    image, mask = clean, np.zeros((size, size), bool)
    words: tuple[str, ...] = ("good",)
    if not (_like_a_bottle(product) or chance(rng, 0.22)):
        for _ in range(3):  # damage at a border may be invisible
            trial, region, trial_words = _damage(rng, product, clean)
            trial_mask = _seen(clean, trial, region)
            if int(trial_mask.sum()) >= size * size // 800:
                image, mask, words = trial, trial_mask, trial_words
                break
    backdrop = () if product.words[-1] in TEXTURES else (product.background,)  # a texture fills the picture
    sample = Sample(to_uint8(image), mask, (*product.words, *words, *backdrop))
    return to_uint8(clean), sample


def _like_a_bottle(product: Product) -> bool:
    """Whether this looks like the demo's bottle: a dark ringed vessel on a light backdrop. Such a product is
    never drawn damaged, so damaged bottles are new to the model."""
    tone, _, detail, name = product.words
    on_light = product.background in ("on-white", "on-grey")
    return name == "vessel" or (on_light and tone == "dark" and (name, detail) == ("ring", "concentric"))


def _seen(before: Array, after: Array, region: Array) -> Array:
    """The visible part of a damage, (S, S) bool."""
    return (region > 0.4) & (np.abs(after - before).max(0) > 0.03)


def _damage(rng: Generator, product: Product, clean: Array) -> tuple[Array, Array, tuple[str, ...]]:
    """A random damage on a copy of `clean`: the picture, the region (S, S) in [0, 1], and the words for size,
    look, damage and place."""
    texture = product.words[-1] in TEXTURES  # textures have no edge to break
    names = [name for name in DAMAGES if not (texture and name in ("notch", "chip"))]
    shares = np.array([DAMAGES[name][3] for name in names])
    name = str(rng.choice(names, p=shares / shares.sum()))
    paint_damage, on_edge, extents, _ = DAMAGES[name]
    step = int(rng.integers(3))
    extent = extents[step] * float(rng.uniform(0.88, 1.15))
    spot, place_word = _spot(rng, product, on_edge and not texture, name in ("blob", "fiber", "film"), extent)
    image = clean.copy()
    region, look = paint_damage(rng, image, product, spot)
    return np.clip(image, 0.0, 1.0), region, (SIZES[step], look, name, place_word)


def _spot(rng: Generator, product: Product, on_edge: bool, loose: bool, extent: float) -> tuple[Spot, str]:
    """A place for a damage, and its word: on an edge (facing inwards), in the opening (`loose` damages only),
    or anywhere on the product."""
    size = product.body.shape[0]
    grid = make_grid(size)
    field, word = product.body, ""
    if on_edge:
        candidates = np.abs(field) < 0.8 * grid.pixel
        word = "rim"
    elif loose and product.hole is not None and chance(rng, 0.6):
        candidates = product.hole < -0.4 * min(extent, float(-product.hole.min()))
        word = "hole"
    else:
        candidates = field < -0.4 * min(extent, float(-field.min()))
    margin = size // 16
    inner = np.flatnonzero(candidates[margin:-margin, margin:-margin])
    if inner.size == 0:
        inner = np.array([(size - 2 * margin) ** 2 // 2])
    row, column = divmod(int(inner[int(rng.integers(inner.size))]), size - 2 * margin)
    row, column = row + margin, column + margin
    x, y = float(grid.x[row, column]), float(grid.y[row, column])
    angle = float(rng.uniform(-math.pi, math.pi))
    if on_edge:
        slope_x = float(field[row, column + 1] - field[row, column - 1])
        slope_y = float(field[row + 1, column] - field[row - 1, column])
        angle = math.atan2(-slope_y, -slope_x)
    word = word or ("centre" if math.hypot(x, y) < 0.35 else "side")
    return Spot(place(grid, x, y, angle), x, y, angle, extent), word
