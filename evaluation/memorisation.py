"""Copies: the distance of generated images to their nearest training image, relative to that of real
images."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import nearest
from evaluation.numbers import Metric, Number, number, share, unknown

COPY = 0.5  # of the usual distance of a real image to its nearest other: up to this it is called a copy
NO_SCALE = "there is no usual distance between real images: most equal another one, or there is only one"


def orientations(pixels: np.ndarray, side: int = 32) -> list[np.ndarray]:
    """(N, 3 * side^2) -> the same in each of the 8 flips and quarter turns, all of which training shows."""
    images = pixels.reshape(-1, 3, side, side)
    return [np.ascontiguousarray(np.rot90(mirrored, turns, (2, 3))).reshape(len(pixels), -1)
            for mirrored in (images, images[..., ::-1]) for turns in range(4)]


class Space:
    """Where distances are measured: the training images' vectors, in each of their orientations (N, d).

    Distances are divided by the usual one: the median over held-out real images of the distance to the
    nearest training image; where none are held out, over training images of that to the nearest other. Where
    it is 0 or infinite, all ratios are NaN.
    """

    def __init__(self, training: list[np.ndarray], held_out: np.ndarray | None) -> None:
        self.training, self.usual = training, 1.0
        real, _ = self.nearness(training[0] if held_out is None else held_out, held_out is None)
        usual = float(np.median(real))
        self.usual = usual if 0 < usual < np.inf else np.nan
        self.real = real / self.usual

    def nearness(self, x: np.ndarray, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """For each x: the distance to its nearest training image over the usual one, and which that is.

        same: x are the training images themselves, and none is its own neighbour.
        """
        found = [nearest(x, block, same=same) for block in self.training]
        distance, index = (np.stack(column) for column in zip(*found, strict=True))
        best, rows = distance.argmin(0), np.arange(len(x))
        return distance[best, rows] / self.usual, index[best, rows]


def memorised_numbers(ratios: dict[str, np.ndarray], which: np.ndarray) -> dict[Metric, Number]:
    """Medians of the ratios (N,) in each space and the share of copies, of the images `which` (N,) booleans.

    A copy: at most half the usual distance away, in any space that has one.
    """
    if not which.any():
        return {}
    medians = {Metric[f"NEAREST_{space.upper()}"]: float(np.median(ratio[which]))
               for space, ratio in ratios.items()}
    least = np.fmin.reduce(list(ratios.values()))[which]
    return {**{metric: unknown(NO_SCALE) if np.isnan(value) else number(value)
               for metric, value in medians.items()},
            Metric.COPIES: unknown(NO_SCALE) if np.isnan(least).any() else share(least <= COPY)}
