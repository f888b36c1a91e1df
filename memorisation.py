"""Copies: how near generated images lie to their nearest training image, beside what real images do."""

from __future__ import annotations

import numpy as np
from PIL import Image

from comparison import Number, number, share
from features import read_square
from folders import Photo
from metrics import nearest
from pictures import grid, tensor_to_image

COPY = 0.5  # of the usual distance of a real image to its nearest other: nearer is called a copy
SHOWN, CELL = 4, 160  # pairs a class in the sheet, and their pixels


def orientations(pixels: np.ndarray, side: int = 32) -> list[np.ndarray]:
    """(N, 3 * side^2) -> the same in each of the 8 flips and quarter turns.

    Training shows the generator all of these, so each may be what it copies.
    """
    images = pixels.reshape(-1, 3, side, side)
    return [np.ascontiguousarray(np.rot90(mirrored, turns, (2, 3))).reshape(len(pixels), -1)
            for mirrored in (images, images[..., ::-1]) for turns in range(4)]


class Space:
    """Where nearness is measured: the training images' vectors, in each of their orientations (N, d).

    Distances are divided by the usual one: the median of held-out real images to their nearest training
    image; where none are held out, of each training image to the nearest other.
    """

    def __init__(self, training: list[np.ndarray], held_out: np.ndarray | None) -> None:
        self.training, self.usual = training, 1.0
        real, _ = self.nearness(training[0] if held_out is None else held_out, held_out is None)
        self.usual = float(np.median(real))
        self.real = self._relative(real)

    def nearness(self, x: np.ndarray, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """For each x: the distance to its nearest training image over the usual one, and which that is.

        same: x are the training images themselves, and none is its own neighbour.
        """
        found = [nearest(x, block, same=same) for block in self.training]
        distance, index = (np.stack(column) for column in zip(*found, strict=True))
        best, rows = distance.argmin(0), np.arange(len(x))
        return self._relative(distance[best, rows]), index[best, rows]

    def _relative(self, distance: np.ndarray) -> np.ndarray:
        if self.usual == 0:  # training images that are all alike: nothing but a copy is as near
            return np.where(distance > 0, np.inf, 0.0)
        return distance / self.usual


def memorised_numbers(ratios: dict[str, np.ndarray], which: np.ndarray) -> dict[str, Number]:
    """Medians of the ratios (N,) in each space and the share of copies, of the images `which` (N,) booleans.

    A copy: at most half the usual distance away, in either space.
    """
    if not which.any():
        return {}
    least = np.minimum.reduce(list(ratios.values()))[which]
    medians = {space: float(np.median(ratio[which])) for space, ratio in ratios.items()}
    found = {f"nearest_{space}": number(value if np.isfinite(value) else None)
             for space, value in medians.items()}
    return found | {"copies": share(least <= COPY)}


def closest_pairs(fake: list[Photo], training: list[Photo], found: dict[str, tuple[np.ndarray, np.ndarray]],
                  label: np.ndarray, classes: list[str]) -> Image.Image:
    """The generated images nearest to a training image, SHOWN of each class, each beside that image."""
    ratio, index = (np.stack(column) for column in zip(*found.values(), strict=True))
    best = ratio.argmin(0)
    rows, labels = [], []
    for class_id in np.unique(label):
        members = np.flatnonzero(label == class_id)
        members = members[np.argsort(ratio.min(0)[members], kind="stable")[:SHOWN]]
        pairs = [(fake[i], training[index[best[i], i]]) for i in members]
        rows.append([tensor_to_image(read_square(photo, CELL)) for pair in pairs for photo in pair])
        nearness = "  ".join(f"{ratio.min(0)[i]:.2f}" for i in members)
        labels.append(f"{classes[class_id]}\n{nearness}")
    return grid(rows, labels, "Generated, then the training image nearest to it; 1 is the usual distance")
