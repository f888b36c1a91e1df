"""Distances between two sets of feature vectors, and intervals. Arrays only: no images, no networks.

x and y are features, one row an image, (n, d) and (m, d); x is the generated side, y the real one. All sums
are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy  # whose parts are loaded when they are first used

Array = np.ndarray
BLOCK = 1024  # rows at once where every x meets every y: memory grows with n, not with its square
PRECISION_K = 3  # neighbours of precision and recall: Kynkaanniemi et al. 2019 (1904.06991)
DENSITY_K = 5  # neighbours of density and coverage: Naeem et al. 2020 (2002.09797)


def _root(x: Array) -> tuple[Array, Array]:
    """The mean (d,), and A with A^T A the covariance (divisor n - 1)."""
    x = x.astype(np.float64)
    mean = x.mean(0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def frechet(x: Array, y: Array) -> float:
    """Frechet distance of the Gaussians fitted to x and y.

    |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)): Heusel et al. 2017 (1706.08500), equation 6.

    Exact for n, m >= 2: with S_x = A^T A and S_y = B^T B, tr (S_x S_y)^(1/2) is the sum of the
    singular values of A B^T, so singular covariances need neither a matrix square root nor an epsilon.
    """
    (mean_x, a), (mean_y, b) = _root(x), _root(y)
    spread = (a ** 2).sum() + (b ** 2).sum()
    if min(len(a), len(b)) > a.shape[1]:  # many images: Q R = A has the same A^T A = R^T R, and R is small
        a, b = (np.linalg.qr(part, mode="r") for part in (a, b))
    singular = np.linalg.svd(a @ b.T, compute_uv=False)
    return float(((mean_x - mean_y) ** 2).sum() + spread - 2 * singular.sum())


def resampled(statistic: Callable[[Array, Array], float], x: Array, y: Array, times: int,
              rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of statistic(x, y) by a bootstrap over the rows of both.

    Resampling repeats rows, which biases a Frechet distance as much again as the sample itself did. So only
    the spread of the resampled values is used: their quantiles, moved so that their mean lies on the value.
    """
    values = [statistic(x[rng.integers(len(x), size=len(x))], y[rng.integers(len(y), size=len(y))])
              for _ in range(times)]
    low, high = np.quantile(values, [0.025, 0.975]) - np.mean(values) + statistic(x, y)
    return float(low), float(high)


def _blocks(x: Array) -> Iterator[tuple[slice, Array]]:
    for start in range(0, len(x), BLOCK):
        part = slice(start, start + BLOCK)
        yield part, x[part].astype(np.float64)


def cubic(x: Array, y: Array) -> Array:
    """KID's kernel (x.y / d + 1)^3, (n, m): Binkowski et al. 2018 (1801.01401)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def rbf(x: Array, y: Array) -> Array:
    """CMMD's kernel exp(-|x - y|^2 / (2 * 10^2)), (n, m): Jayasumana et al. 2023 (2401.09603)."""
    return np.exp(-_squared(x, y) / 200)


def _squared(x: Array, y: Array) -> Array:
    """Squared Euclidean distances (n, m), none below 0."""
    return np.maximum((x ** 2).sum(1)[:, None] + (y ** 2).sum(1) - 2 * x @ y.T, 0)


def mmd(x: Array, y: Array, kernel: Callable[[Array, Array], Array] = cubic) -> tuple[float, float, float]:
    """Unbiased squared MMD over all pairs, and its 95 % interval from the jackknife. May be negative.

    Gretton et al. 2012, equation 3. Leaving one image out changes three sums by what that image added to
    them, so the jackknife costs no second pass. Needs 3 images a side.
    """
    n, m = len(x), len(y)
    own_x, own_y = (_row_sums(z, z, kernel) - _diagonal(z, kernel) for z in (x, y))
    cross_x, cross_y = _row_sums(x, y, kernel), _row_sums(y, x, kernel)
    within_x, within_y, cross = own_x.sum(), own_y.sum(), cross_x.sum()
    value = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * cross / (n * m)
    without_x = ((within_x - 2 * own_x) / ((n - 1) * (n - 2)) + within_y / (m * (m - 1))
                 - 2 * (cross - cross_x) / ((n - 1) * m))
    without_y = (within_x / (n * (n - 1)) + (within_y - 2 * own_y) / ((m - 1) * (m - 2))
                 - 2 * (cross - cross_y) / (n * (m - 1)))
    variance = (n - 1) * without_x.var() + (m - 1) * without_y.var()
    reach = 1.96 * np.sqrt(variance)
    return float(value), float(value - reach), float(value + reach)


def _row_sums(x: Array, y: Array, kernel: Callable[[Array, Array], Array]) -> Array:
    """sum_j k(x_i, y_j), (n,)."""
    return np.concatenate([sum(kernel(a, b).sum(1) for _, b in _blocks(y)) for _, a in _blocks(x)])


def _diagonal(x: Array, kernel: Callable[[Array, Array], Array]) -> Array:
    """k(x_i, x_i), (n,)."""
    return np.concatenate([np.diag(kernel(a, a)) for _, a in _blocks(x)])


def nearest(x: Array, y: Array, k: int = 1, same: bool = False) -> tuple[Array, Array]:
    """For each x the Euclidean distance to its k-th nearest y, and which y is the nearest. Both (n,).

    same: x is y, and no image counts as its own neighbour. Infinite where there are fewer than k.
    """
    distances, indices = np.full(len(x), np.inf), np.zeros(len(x), int)
    y = y.astype(np.float64)
    for place, part in _blocks(x):
        squared = _squared(part, y)
        if same:
            rows = np.arange(len(part))
            squared[rows, rows + place.start] = np.inf
        indices[place] = squared.argmin(1)
        if k <= squared.shape[1]:
            distances[place] = np.sqrt(np.partition(squared, k - 1, axis=1)[:, k - 1])
    return distances, indices


def coverage_of(x: Array, y: Array) -> dict[str, float]:
    """precision, recall (k = 3), density and coverage (k = 5) of x against y.

    Precision: the share of x within reach of some y, whose reach is the distance to its k-th nearest y;
    recall: the same the other way round. Density counts how many y reach an x, over k; coverage is the
    share of y that reach at least one x. None where a side has no k neighbours.
    """
    if min(len(x), len(y)) <= DENSITY_K:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), None)
    reach_x, reach_y = (nearest(z, z, PRECISION_K, same=True)[0] for z in (x, y))
    reach = nearest(y, y, DENSITY_K, same=True)[0]
    within, counted = np.zeros(len(x), bool), np.zeros(len(x))
    reached, covered = np.zeros(len(y), bool), np.zeros(len(y), bool)
    wide = y.astype(np.float64)
    for place, part in _blocks(x):
        distance = np.sqrt(_squared(part, wide))
        within[place] = (distance <= reach_y).any(1)
        reached |= (distance <= reach_x[place, None]).any(0)
        counted[place] = (distance <= reach).sum(1)
        covered |= (distance <= reach).any(0)
    return {"precision": float(within.mean()), "recall": float(reached.mean()),
            "density": float(counted.mean() / DENSITY_K), "coverage": float(covered.mean())}


def spread(x: Array) -> float:
    """Mean Euclidean distance over all pairs of different rows; 0 for fewer than two."""
    total = sum(np.sqrt(_squared(a, b)).sum() for _, a in _blocks(x) for _, b in _blocks(x))
    return float(total / (len(x) * (len(x) - 1))) if len(x) > 1 else 0.0


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    interval = scipy.stats.binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def ratio(correct: int, total: int, of_correct: int, of_total: int) -> dict[str, Any]:
    """The ratio of two shares, with its 95 % interval on the log scale (Katz et al. 1978); null at 0."""
    if min(correct, of_correct) == 0:
        return {"value": 0.0 if of_correct else None, "low": None, "high": None}
    value = correct / total / (of_correct / of_total)
    reach = np.exp(1.96 * np.sqrt(1 / correct - 1 / total + 1 / of_correct - 1 / of_total))
    return {"value": float(value), "low": float(value / reach), "high": float(value * reach)}
