"""The numbers of one set of images against the training reference.

Frechet distances of few images are mostly noise and grow as images get fewer. So beside the usual value over
all images stands FID_EQUAL, at equal numbers on both sides. Read it against that of two halves of the real
images.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics import DENSITY_K, coverage_of, frechet, mmd, resampled, spread, spread_ratio
from evaluation.numbers import Metric, Number, mean_of, number, unknown
from runtime.seeds import numpy_rng

SPLITS = 20  # random halvings
FEWEST = 3  # images a side, below which nothing is computed
COVERAGES = (Metric.PRECISION, Metric.RECALL, Metric.DENSITY, Metric.COVERAGE)
ALL_DISTANCES = (Metric.FID, Metric.KID, Metric.FID_EQUAL, *COVERAGES, Metric.DIVERSITY)
TOO_FEW = f"fewer than {FEWEST} images on a side"
TOO_FEW_NEIGHBOURS = f"no more than {DENSITY_K} images on a side"


def incomparable(x: np.ndarray, y: np.ndarray) -> str | None:
    """Why features x (n, d) cannot be compared with y (m, d); None where they can."""
    if min(len(x), len(y)) < FEWEST:
        return TOO_FEW
    alike = np.ptp(y, axis=0).max() <= 1e-6 * np.abs(y).max()  # but for rounding
    return "the training images are all alike to the network" if alike else None


def _points(x: np.ndarray, y: np.ndarray) -> dict[Metric, float | None]:
    """What has no interval. Diversity: mean distance between two images of x, over that in y."""
    apart = spread(y)
    return {**dict(zip(COVERAGES, coverage_of(x, y) or [None] * 4, strict=True)),
            Metric.DIVERSITY: spread(x) / apart if apart else None}


def compare(x: np.ndarray, y: np.ndarray, equal: int, times: int, key: tuple) -> dict[Metric, Number]:
    """Features x (n, d) against y (m, d). The interval of FID is bootstrapped `times`; FID_EQUAL takes
    `equal` of each, SPLITS times."""
    if why := incomparable(x, y):
        return dict.fromkeys(ALL_DISTANCES, unknown(why))
    rng = numpy_rng(*key, "bootstrap")
    low, high = resampled(frechet, x, y, times, rng)
    numbers = {Metric.FID: number(frechet(x, y), max(low, 0.0), high), Metric.KID: number(*mmd(x, y)),
               Metric.FID_EQUAL: mean_of([frechet(_some(x, equal, rng), _some(y, equal, rng))
                                   for _ in range(SPLITS if equal >= FEWEST else 0)], TOO_FEW)}
    points = {metric: mean_of([value], TOO_FEW_NEIGHBOURS) for metric, value in _points(x, y).items()}
    return numbers | points | {Metric.DIVERSITY: number(*spread_ratio(x, y))}


def _some(x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return x[rng.permutation(len(x))[:count]]


def compare_halves(y: np.ndarray, equal: int, key: tuple) -> dict[Metric, Number]:
    """The same numbers of random halves of y against each other: what a perfect generator would get."""
    why = f"fewer than {2 * FEWEST} real images to halve" if len(y) < 2 * FEWEST else incomparable(y, y)
    if why:
        return dict.fromkeys(ALL_DISTANCES, unknown(why))
    rng, found = numpy_rng(*key, "halves"), []
    for _ in range(SPLITS):
        order = rng.permutation(len(y))
        a, b = y[order[:len(y) // 2]], y[order[len(y) // 2:]]
        found.append({Metric.FID: frechet(a, b), Metric.KID: mmd(a, b)[0], **_points(a, b),
                      Metric.FID_EQUAL: frechet(a[:equal], b[:equal]) if equal >= FEWEST else None})
    return {metric: mean_of([row[metric] for row in found], TOO_FEW if metric is Metric.FID_EQUAL
                            else TOO_FEW_NEIGHBOURS) for metric in found[0]}
