"""The numbers of one set of images against the training reference, each with its 95 % interval.

Frechet distances of few images are mostly noise and grow as images get fewer. So beside the usual value
over all images stands one at equal numbers on both sides, `fid_equal`, to be read against the same of two
halves of the real images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from metrics import coverage_of, frechet, mmd, ratio, resampled, spread, wilson
from seeds import numpy_rng

SPLITS = 20  # random halvings
FEWEST = 3  # images a side, below which nothing is computed
Number = dict[str, Any]


def number(value: float | None, low: float | None = None, high: float | None = None) -> Number:
    return {"value": value, "low": low, "high": high}


def share(which: np.ndarray) -> Number:
    """The share of true ones among booleans (N,), with Wilson's interval and its counts."""
    count, n = int(which.sum()), len(which)
    return {**number(count / n, *wilson(count, n)), "count": count, "n": n}


def mean_of(values: list[float | None]) -> Number:
    """The mean of repeated measurements and the range that 95 % of them lie in."""
    known = [value for value in values if value is not None]
    if not known:
        return number(None)
    return number(float(np.mean(known)), *map(float, np.quantile(known, [0.025, 0.975])))


def _points(x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    """What has no interval of its own. diversity: mean distance between two images of x, over that in y."""
    apart = spread(y)
    return {**coverage_of(x, y), "diversity": spread(x) / apart if apart else None}


def compare(x: np.ndarray, y: np.ndarray, equal: int, times: int, key: tuple) -> dict[str, Number]:
    """Features x (n, d) against y (m, d); fid_equal takes `equal` of each, SPLITS times."""
    if min(len(x), len(y)) < FEWEST:
        return {}
    rng = numpy_rng(*key, "bootstrap")
    numbers = {"fid": number(frechet(x, y), *resampled(frechet, x, y, times, rng)), "kid": number(*mmd(x, y))}
    if equal >= 2:
        numbers["fid_equal"] = mean_of([frechet(_some(x, equal, rng), _some(y, equal, rng))
                                        for _ in range(SPLITS)])
    return numbers | {name: number(value) for name, value in _points(x, y).items()}


def _some(x: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    return x[rng.permutation(len(x))[:count]]


def compare_halves(y: np.ndarray, equal: int, key: tuple) -> dict[str, Number]:
    """The same numbers of random halves of y against each other: what a perfect generator would get."""
    if len(y) < 2 * FEWEST:
        return {}
    rng, found = numpy_rng(*key, "halves"), []
    for _ in range(SPLITS):
        order = rng.permutation(len(y))
        a, b = y[order[:len(y) // 2]], y[order[len(y) // 2:]]
        found.append({"fid": frechet(a, b), "kid": mmd(a, b)[0], **_points(a, b)})
        if equal >= 2:
            found[-1]["fid_equal"] = frechet(a[:equal], b[:equal])
    return {name: mean_of([row[name] for row in found]) for name in found[0]}


def judged_numbers(right: np.ndarray, ceiling: np.ndarray) -> dict[str, Number]:
    """DCA with Wilson's interval, and its ratio to the judge's own accuracy on held-out real images.

    right, ceiling: booleans, one an image.
    """
    if not len(right) or not len(ceiling):
        return {}
    return {"dca": share(right),
            "dca_ratio": ratio(int(right.sum()), len(right), int(ceiling.sum()), len(ceiling))}
