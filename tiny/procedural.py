"""The pictures the embedded base model is trained on: random products, random damages, words for both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tiny.damages import DAMAGES, Spot
from tiny.families import DETAILS, HUES, TONES, chance
from tiny.products import BACKGROUNDS, FAMILIES, TEXTURES, Product, draw_product
from tiny.shapes import Array, Generator, make_grid, place, to_uint8

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
    """The picture of `seed`, a pure function of it. About a quarter are undamaged, with the word "good".

    The words, in this order: tone, hue, detail, product; "good" or size, look, damage, place; backdrop.
    """
    return draw_pair(seed, size)[1]


def draw_pair(seed: int, size: int = 128) -> tuple[Array, Sample]:
    """The undamaged picture (S, S, 3) uint8, and the sample drawn over it."""
    rng = np.random.default_rng(seed)
    product = draw_product(rng, size)
    clean = np.clip(product.image, 0.0, 1.0)
    image, mask, words = clean, np.zeros((size, size), bool), ("good",)
    if not (_like_a_bottle(product) or chance(rng, 0.22)):
        for _ in range(3):  # a spot at the picture's or the product's border may leave nothing to see
            trial, region, trial_words = _damage(rng, product, clean)
            trial_mask = _seen(clean, trial, region)
            if int(trial_mask.sum()) >= size * size // 800:
                image, mask, words = trial, trial_mask, trial_words
                break
    backdrop = () if product.words[-1] in TEXTURES else (product.background,)  # a texture fills the picture
    sample = Sample(to_uint8(image), mask, (*product.words, *words, *backdrop))
    return to_uint8(clean), sample


def _like_a_bottle(product: Product) -> bool:
    """Dark ringed vessels on a light backdrop are never damaged: the demo's bottle must be news."""
    tone, _, detail, name = product.words
    on_light = product.background in ("on-white", "on-grey")
    return name == "vessel" or (on_light and tone == "dark" and (name, detail) == ("ring", "concentric"))


def _seen(before: Array, after: Array, region: Array) -> Array:
    """(S, S) bool: where the damage lies, as far as it can be seen."""
    return (region > 0.4) & (np.abs(after - before).max(0) > 0.03)


def _damage(rng: Generator, product: Product, clean: Array) -> tuple[Array, Array, tuple[str, ...]]:
    """A random damage on a copy of `clean`: picture, region (S, S) in [0, 1]; size, look, damage, place."""
    texture = product.words[-1] in TEXTURES  # these have no edge to break
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
    """A place for a damage: on an edge (facing inwards), in the opening if it may be `loose`, or anywhere."""
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
