"""Finds photos that are copies of each other, and not just photos of one part in a fixed jig."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import uniform_filter

from dataset.layouts import Photo

SIDE = 128  # of the pictures that are compared
COARSE = 32
# Grey 32x32 thumbnails (0..255) of two real bottles differ by 5 or more (RMS), of a resaved one by under 1.
NEAR = 2.0
TRIED = 20  # of the nearest photos
# Levels: saving again makes no larger mean difference in the mask, and no larger difference anywhere.
CLEAR = 4.0
SPREAD = 6.0  # a saved copy differs by no more than so many times its RMS difference anywhere


@dataclass
class Fingerprint:
    """A photo's decoded content: digest, grey picture (128,128), and where its damage is (128,128)."""

    photo: Photo
    digest: str
    grey: np.ndarray
    region: np.ndarray

    @property
    def coarse(self) -> np.ndarray:
        """(1024,) float32: the grey picture in 32x32 pixels."""
        step = SIDE // COARSE
        return self.grey.reshape(COARSE, step, COARSE, step).mean(axis=(1, 3), dtype=np.float32).ravel()


def fingerprint(photo: Photo, image: np.ndarray, region: np.ndarray) -> Fingerprint:
    """Of an image (H,W,3) uint8 with its region (H,W) in {0,1}."""
    grey = Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    damage = Image.fromarray(region * np.uint8(255)).resize((SIDE, SIDE), Image.Resampling.BOX)
    return Fingerprint(photo, hashlib.blake2b(image.tobytes()).hexdigest(), np.asarray(grey),
                       np.asarray(damage) > 0)


def is_copy(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two similar photos are one saved twice: neither the damage nor any single place differs."""
    difference = one.grey.astype(np.float32) - other.grey
    damage = one.region | other.region
    if damage.any() and not damage.all():
        inside, outside = np.abs(difference[damage]).mean(), np.abs(difference[~damage]).mean()
        if inside > max(CLEAR, 2 * outside):
            return False
    peak = np.abs(uniform_filter(difference, 3)).max()
    return bool(peak <= max(CLEAR, SPREAD * np.sqrt(np.square(difference).mean())))


def duplicates(prints: list[Fingerprint]) -> list[str]:
    """One line for each photo that is a copy of an earlier one, naming the first."""
    unique = list({each.photo.image: each for each in prints}.values())  # one image may hold several classes
    lines, stack = [], np.stack([each.coarse for each in unique])
    for index, each in enumerate(unique):
        distances = np.sqrt(((stack[:index] - each.coarse) ** 2).mean(axis=1))
        near = [unique[i] for i in distances.argsort()[:TRIED] if distances[i] <= NEAR]
        first = next((other for other in near if other.digest == each.digest or is_copy(each, other)), None)
        if first is None:
            continue
        same = "the same image as" if first.digest == each.digest else "nearly the same image as"
        other_class = (each.photo.product, each.photo.damage) != (first.photo.product, first.photo.damage)
        lines.append(f"{each.photo.image}: {same} {first.photo.image}"
                     f"{', in another class' if other_class else ''}; keep one")
    return lines
