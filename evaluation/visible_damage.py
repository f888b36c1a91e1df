"""Counting damage without masks: how many places of an image look like no good photo.

A place is a connected region of the difference from the good photos: at each pixel the smallest from any of
them, in any flip and turn. How large a difference counts is chosen on real photos, whose masks say how many
places there are, and on these with the damage of another laid beside their own. Each is counted with what the
others chose, which shows how far the counts can be trusted.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

SIZE, SMALLEST = 64, 0.001  # pixels of a side; share of the picture below which a region of a mask is a speck
GAP = 3  # pixels between two damages laid beside each other
# What is chosen from: blur in pixels, difference in levels of 255, share of the picture.
BLURS, LEVELS, AREAS = (0.75, 1.5, 2.25), np.geomspace(8, 160, 14), (0.001, 0.002, 0.004, 0.01)
ENOUGH, FEWEST = 0.8, 5  # share of test images to be counted right; how many of a kind there must be
KINDS = "good photos", "photos with one damaged place", "photos with several"


def regions(marked: np.ndarray, smallest: tuple[float, ...] = (SMALLEST,)) -> list[int]:
    """How many connected regions, corners included, of booleans (S, S) are at least each of these shares."""
    sizes = np.bincount(ndimage.label(marked, np.ones((3, 3)))[0].ravel())[1:]
    return [int((sizes >= least * marked.size).sum()) for least in smallest]


def views(x: np.ndarray, orientation: str) -> list[np.ndarray]:
    """x (.., S, S) in each flip and quarter turn that training shows."""
    turned = [np.rot90(mirrored, turns, (-2, -1)) for mirrored in (x, x[..., ::-1]) for turns in range(4)]
    return turned if orientation == "any" else turned[:1]


def unlike(image: np.ndarray, good: np.ndarray, orientation: str, same: bool = False) -> np.ndarray:
    """How far images (N, 3, S, S) in [-1, 1] are from the nearest good one at each pixel: (blurs, N, S, S),
    in levels of 255 of the channel that differs most. What a good image shows at the eight pixels around, and
    between that, is no difference. same: they are the good ones; none is its own neighbour."""
    found = np.full((len(BLURS), len(image), *image.shape[2:]), np.inf, np.float32)
    for nearest, blur in zip(found, BLURS, strict=True):
        x, y = (127.5 * ndimage.gaussian_filter(part, (0, 0, blur, blur)) for part in (image, good))
        around = (1, 1, 3, 3)
        bounds = np.stack([ndimage.minimum_filter(y, around), ndimage.maximum_filter(y, around)], 1)
        for i, other in enumerate(bounds):
            among = np.flatnonzero(np.arange(len(x)) != i) if same else np.arange(len(x))
            for low, high in views(other, orientation):
                outside = np.maximum(low - x[among], x[among] - high).max(1)
                nearest[among] = np.minimum(nearest[among], outside)
    return found


def counts_of(difference: np.ndarray) -> np.ndarray:
    """The counts (blurs, levels, areas, N) in the differences of unlike, with every setting."""
    return np.array([[np.transpose([regions(one > level, AREAS) for one in images]) for level in LEVELS]
                     for images in difference])


def doubled(image: np.ndarray, mask: np.ndarray, orientation: str) -> tuple[list, list, list]:
    """Images (N, 3, S, S) with the damage of another, in any flip and turn, beside their own, where that
    fits: the new images, their masks (S, S), which image each was."""
    images, masks, owners = [], [], []
    for i, own in enumerate(mask):
        near = ndimage.binary_dilation(own, np.ones((3, 3)), GAP)
        fits = [(over, there) for j in (np.arange(1, len(mask)) + i) % len(mask)
                for over, there in zip(views(image[j], orientation), views(mask[j], orientation), strict=True)
                if there.any() and not (near & there).any()]
        if fits:
            over, there = fits[i % len(fits)]
            images.append(np.where(there, over, image[i]))
            masks.append(own | there)
            owners.append(i)
    return images, masks, owners


def best(right: np.ndarray, kind: np.ndarray) -> tuple[int, ...]:
    """The setting with the largest share of right counts, booleans (blurs, levels, areas, N), the mean over
    the kinds of image. The next levels count too, so that it is not the last one that is right."""
    shares = np.mean([right[..., kind == k].mean(-1) for k in np.unique(kind)], axis=0)
    smooth = ndimage.uniform_filter1d(shares, 3, axis=1, mode="nearest")
    return tuple(map(int, np.unravel_index(smooth.argmax(), smooth.shape)))


class Counter(NamedTuple):
    """What images are compared with, and which setting. real: the counts of the real photos (N,). agreement:
    how many of each of KINDS are counted right, of how many."""

    good: np.ndarray
    orientation: str
    setting: tuple[int, ...]
    real: np.ndarray
    agreement: dict[str, list[int]]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The counts (N,) of images (N, 3, S, S)."""
        return counts_of(unlike(image, self.good, self.orientation))[self.setting]


def calibrate(image: np.ndarray, mask: np.ndarray, good: np.ndarray, orientation: str) -> Counter | str:
    """What counts the damage of a type, from its real images (N, 3, S, S) with masks (N, S, S) and from good
    ones; or why nothing does."""
    images, masks, owners = doubled(image, mask, orientation)
    difference = np.concatenate([unlike(np.stack([*image, *images]), good, orientation),
                                 unlike(good, good, orientation, same=True)], axis=1)
    truth = np.array([regions(m)[0] for m in [*mask, *masks]] + [0] * len(good))
    owner = np.array([*range(len(image)), *owners, *range(len(image), len(image) + len(good))])
    count, kind = counts_of(difference), np.minimum(truth, 2)
    right, found = count == truth, np.zeros(len(truth), int)
    for i in np.unique(owner):
        found[owner == i] = count[best(right[..., owner != i], kind[owner != i])][owner == i]
    agreement = {name: [int((found == truth)[kind == k].sum()), int((kind == k).sum())]
                 for k, name in enumerate(KINDS)}
    for name, (correct, n) in agreement.items():
        if n < FEWEST or correct < ENOUGH * n:
            return f"of {n} {name} {correct} are counted right; it takes {ENOUGH:.0%} of {FEWEST} or more"
    return Counter(good, orientation, best(right, kind), found[:len(image)], agreement)
