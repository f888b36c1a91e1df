"""Distances between two sets of feature vectors, and intervals. Arrays only: no images, no networks.

x and y are features, one row an image, (n, d) and (m, d); x is the generated side, y the real one. All sums
are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded when they are first used

Array = np.ndarray
EQUAL = 1e-12  # differences of sums of squares up to this part of these are rounding: that of equal vectors
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
        a, b = np.asarray(np.linalg.qr(a, mode="r")), np.asarray(np.linalg.qr(b, mode="r"))
    singular = np.linalg.svd(a @ b.T, compute_uv=False)
    distance = float(((mean_x - mean_y) ** 2).sum() + spread - 2 * singular.sum())
    return distance if distance > EQUAL * spread else 0.0


def resampled(statistic: Callable[[Array, Array], float], x: Array, y: Array, times: int,
              rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of statistic(x, y) by a bootstrap over the rows of both.

    Resampling repeats rows and so raises a Frechet distance. Therefore only the spread of the resampled
    values is used: their quantiles are moved until their mean is the value. The lower end can fall below 0.
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
    """Squared Euclidean distances (n, m); 0 where they are within rounding, as those of equal rows are."""
    sums = (x ** 2).sum(1)[:, None] + (y ** 2).sum(1)
    squared = sums - 2 * x @ y.T
    return np.where(squared > EQUAL * sums, squared, 0)


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


class Coverage(NamedTuple):
    """What coverage_of returns."""

    precision: float
    recall: float
    density: float
    coverage: float


def coverage_of(x: Array, y: Array) -> Coverage | None:
    """Precision, recall (k = 3), density and coverage (k = 5) of x against y.

    Precision: the share of x within reach of some y; the reach of y is the distance to its k-th nearest y.
    Recall: the same with x and y swapped. Density: how many y reach an x, over k. Coverage: the share of y
    that reach at least one x. None where a side has fewer than k neighbours.
    """
    if min(len(x), len(y)) <= DENSITY_K:
        return None
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
    return Coverage(float(within.mean()), float(reached.mean()), float(counted.mean() / DENSITY_K),
                    float(covered.mean()))


def _distance_sums(x: Array) -> Array:
    """The sum of the Euclidean distances from each row to all others, (n,)."""
    return np.concatenate([sum(np.sqrt(_squared(a, b)).sum(1) for _, b in _blocks(x)) for _, a in _blocks(x)])


def spread(x: Array) -> float:
    """Mean Euclidean distance over all pairs of different rows; 0 for fewer than two."""
    return float(_distance_sums(x).sum() / (len(x) * (len(x) - 1))) if len(x) > 1 else 0.0


def spread_ratio(x: Array, y: Array) -> tuple[float, float, float]:
    """spread(x) over spread(y), which is above 0, and its 95 % interval: the jackknife's, on the log scale.

    As in mmd, leaving one image out takes away its own sum. Needs 3 images a side.
    """
    means, variance = [], 0.0
    for sums in map(_distance_sums, (x, y)):
        n, total = len(sums), sums.sum()
        means.append(total / (n * (n - 1)))
        if means[-1]:
            variance += (n - 1) * ((total - 2 * sums) / ((n - 1) * (n - 2))).var() / means[-1] ** 2
    value, factor = means[0] / means[1], np.exp(1.96 * np.sqrt(variance))
    return float(value), float(value / factor), float(value * factor)


def wilson(correct: float, total: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a share; the counts need not be whole."""
    squared = scipy.stats.norm.ppf(0.975) ** 2
    centre = correct + squared / 2
    half = np.sqrt(squared * (correct * (total - correct) / total + squared / 4))
    low, high = (float(bound / (total + squared)) for bound in (centre - half, centre + half))
    return max(0.0, low), min(1.0, high)


def difference(correct: int, total: int, of_correct: int, of_total: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares (Newcombe 1998, method 10)."""
    p, q = correct / total, of_correct / of_total
    (low_p, high_p), (low_q, high_q) = wilson(correct, total), wilson(of_correct, of_total)
    return (p - q - float(np.hypot(p - low_p, high_q - q)), p - q + float(np.hypot(high_p - p, q - low_q)))


Share = tuple[float, float, float]  # and its interval


def ratio(share: Share, of: Share) -> Share:
    """The ratio of two shares, the second above 0, and its 95 % interval.

    The interval combines those of the shares (MOVER-R, Donner and Zou 2012), so it has a width also where a
    share is 0 or 1, unlike that on the log scale.
    """
    (p, low_p, high_p), (q, low_q, high_q) = share, of
    low = (p * q - np.sqrt((p * q) ** 2 - low_p * high_q * (2 * p - low_p) * (2 * q - high_q))) / (
        high_q * (2 * q - high_q))
    high = (p * q + np.sqrt((p * q) ** 2 - high_p * low_q * (2 * p - high_p) * (2 * q - low_q))) / (
        low_q * (2 * q - low_q))
    return p / q, max(0.0, float(low)), float(high)
