"""Distances between feature sets: against torch-fidelity, clean-fid and scipy, and known truths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cleanfid.fid import fid_from_feats, kernel_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from evaluation import metrics


def two_sets(n: int = 60, m: int = 60, d: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(d, d)) / d ** 0.5
    return rng.normal(size=(n, d)) @ mix + 0.3, rng.normal(size=(m, d)) * np.linspace(0.5, 1.5, d)


@pytest.mark.parametrize("n, m", [(60, 90), (400, 300)])
def test_frechet_agrees_with_the_libraries(n: int, m: int) -> None:
    x, y = two_sets(n, m)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(torch.from_numpy(z)) for z in (x, y)),
                                      verbose=False)
    assert metrics.frechet(x, y) == pytest.approx(next(iter(theirs.values())), rel=1e-6)
    assert metrics.frechet(x, y) == pytest.approx(fid_from_feats(x, y), rel=1e-6)


@pytest.mark.parametrize("n, m, d", [(20, 20, 40), (7, 50, 40), (50, 60, 40)])
def test_frechet_agrees_with_a_matrix_square_root(n: int, m: int, d: int) -> None:
    """Singular covariances as well: there the square root is taken of S + 1e-12, in 64 bits."""
    x, y = two_sets(n, m, d)
    s_x, s_y = (np.cov(z.T) + 1e-12 * np.eye(d) for z in (x, y))
    root = sqrtm(s_x @ s_y).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s_x + s_y - 2 * root)
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-3)


def test_frechet_of_gaussians_known_in_advance() -> None:
    """Exactly whitened samples, scaled and moved: |mu|^2 + sum (s - 1)^2."""
    white = np.random.default_rng(0).normal(size=(500, 6))
    white = (white - white.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(white.T))).T
    scale, move = np.linspace(0.5, 2, 6), np.arange(6)
    expected = (move ** 2).sum() + ((scale - 1) ** 2).sum()
    assert metrics.frechet(white * scale + move, white[::-1]) == pytest.approx(expected, rel=1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 10), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_frechet_is_a_distance(n: int, m: int, d: int, seed: int) -> None:
    x, y = two_sets(n, m, d, seed)
    assert metrics.frechet(x, x[::-1]) == 0
    assert metrics.frechet(x, y) == pytest.approx(metrics.frechet(y, x)) and metrics.frechet(x, y) >= 0
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    assert metrics.frechet(x @ turn, y @ turn) == pytest.approx(metrics.frechet(x, y), abs=1e-8)


def test_kid_agrees_with_the_libraries() -> None:
    x, y = two_sets(80, 80)
    theirs = kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), kid_subset_size=80,
                                    kid_subsets=1, kid_kernel="poly", kid_kernel_poly_degree=3,
                                    kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0,
                                    verbose=False, rng_seed=0)
    value, low, high = metrics.mmd(x, y)
    assert value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert value == pytest.approx(kernel_distance(x, y, num_subsets=1), rel=1e-6)
    assert low < value < high


@pytest.mark.parametrize("kernel", [metrics.cubic, metrics.rbf])
def test_mmd_jackknife_is_what_leaving_one_out_gives(kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = two_sets(7, 9, 3)
    value, _, high = metrics.mmd(x, y, kernel)
    without_x = [metrics.mmd(np.delete(x, i, 0), y, kernel)[0] for i in range(7)]
    without_y = [metrics.mmd(x, np.delete(y, i, 0), kernel)[0] for i in range(9)]
    error = np.sqrt(6 * np.var(without_x) + 8 * np.var(without_y))
    assert high - value == pytest.approx(1.96 * error)
    monkeypatch.setattr(metrics, "BLOCK", 4)
    assert metrics.mmd(x, y, kernel)[0] == pytest.approx(value)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Both sides from one distribution: KID is 0; its interval should miss that about one time in twenty."""
    rng = np.random.default_rng(0)
    missed = sum(not low <= 0 <= high for _, low, high in
                 (metrics.mmd(rng.normal(size=(30, 4)), rng.normal(size=(30, 4))) for _ in range(200)))
    assert missed < 30


@pytest.mark.parametrize("block", [1024, 16])
def test_coverage_agrees_with_the_library(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", block)
    x, y = two_sets(70, 50)
    theirs = prc_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=3,
                                    prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    ours = metrics.coverage_of(x, y)
    assert ours.precision == pytest.approx(theirs["precision"]) and 0 < ours.precision < 1
    assert ours.recall == pytest.approx(theirs["recall"]) and 0 < ours.recall < 1


def test_density_and_coverage_by_their_definition() -> None:
    x, y = two_sets(25, 20, 3)
    apart = np.linalg.norm(y[:, None] - y, axis=2)
    radius = np.sort(apart, axis=1)[:, 5]  # column 0 is the distance to itself
    inside = np.linalg.norm(x[:, None] - y, axis=2) <= radius
    ours = metrics.coverage_of(x, y)
    assert ours.density == pytest.approx(inside.sum() / (5 * 25))
    assert ours.coverage == pytest.approx(inside.any(0).mean())
    assert metrics.coverage_of(y, y).coverage == 1 and metrics.coverage_of(x + 99, y).precision == 0
    assert metrics.coverage_of(x[:5], y) is None


def test_nearest_and_spread_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 3)
    x, y = two_sets(8, 7, 4)
    distance = np.linalg.norm(x[:, None] - y, axis=2)
    near, which = metrics.nearest(x, y)
    np.testing.assert_allclose(near, distance.min(1))
    np.testing.assert_array_equal(which, distance.argmin(1))
    own = np.linalg.norm(x[:, None] - x, axis=2)
    np.testing.assert_allclose(metrics.nearest(x, x, 2, same=True)[0], np.sort(own, 1)[:, 2])
    assert metrics.nearest(x[:2], x[:2], 2, same=True)[0].tolist() == [np.inf, np.inf]
    assert metrics.spread(x) == pytest.approx(own.sum() / 56) and metrics.spread(x[:1]) == 0


def test_a_ratio_of_spreads_and_its_jackknife(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 3)
    x, y = two_sets(8, 7, 4)
    value, low, high = metrics.spread_ratio(x, y)
    variance = sum((len(z) - 1) * np.var([metrics.spread(np.delete(z, i, 0)) for i in range(len(z))])
                   / metrics.spread(z) ** 2 for z in (x, y))
    assert value == pytest.approx(metrics.spread(x) / metrics.spread(y))
    assert np.log([value / low, high / value]) == pytest.approx([1.96 * variance ** 0.5] * 2)
    assert metrics.spread_ratio(x[[0, 0, 0]], y)[0] == 0
    rng = np.random.default_rng(0)
    found = [metrics.spread_ratio(*rng.normal(size=(2, 12, 9)) * [[[0.8]], [[1]]]) for _ in range(200)]
    assert sum(low <= 0.8 <= high for _, low, high in found) >= 180


@given(st.integers(0, 99), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_equal_vectors_are_at_distance_0(seed: int, scale: float) -> None:
    """In whatever order and block they are multiplied; the least difference of float32 is one."""
    x = (two_sets(7, 5, 160, seed)[0] * scale).astype(np.float32)
    assert metrics.nearest(x, np.repeat(x, 3, axis=0))[0].tolist() == [0] * 7
    assert metrics.spread(x[[3] * 5]) == 0
    assert (metrics.nearest(x, x * np.float32(1 + 1e-5))[0] > 0).all()


def test_bootstrap_is_centred_and_reproducible() -> None:
    x, y = two_sets(40, 40)
    one = metrics.resampled(metrics.frechet, x, y, 60, np.random.default_rng(0))
    assert one == metrics.resampled(metrics.frechet, x, y, 60, np.random.default_rng(0))
    assert one[0] < metrics.frechet(x, y) < one[1]


def ratio(correct: int, total: int, of_correct: int, of_total: int) -> metrics.Share:
    counts = (correct, total), (of_correct, of_total)
    return metrics.ratio(*((count / n, *metrics.wilson(count, n)) for count, n in counts))


def test_shares() -> None:
    assert metrics.wilson(86, 200) == pytest.approx((0.3633, 0.4992), abs=2e-3)  # the README's
    assert metrics.wilson(0, 8)[0] == 0 and metrics.wilson(8, 8)[1] == 1
    value, low, high = ratio(50, 100, 80, 80)
    assert value == 0.5 and low < 0.5 < high
    value, low, high = ratio(600, 1000, 800, 1000)  # of many: as on the log scale
    reach = np.exp(1.96 * np.sqrt(1 / 600 - 1 / 1000 + 1 / 800 - 1 / 1000))
    assert (low, high) == pytest.approx((value / reach, value * reach), rel=2e-3)
    assert ratio(0, 5, 3, 4)[:2] == (0, 0) and ratio(0, 5, 3, 4)[2] > 0.3


def test_the_difference_of_shares() -> None:
    assert metrics.difference(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)  # Newcombe 1998
    low, high = metrics.difference(16, 16, 16, 16)
    assert -0.25 < low < -0.15 and high == -low


@pytest.mark.parametrize("p, q", [(1, 1), (0.95, 0.9), (0.5, 0.8)])
def test_intervals_of_ratios_hold_the_truth(p: float, q: float) -> None:
    """Of 16 and 24 images, where all may be right."""
    rng = np.random.default_rng(0)
    counts = [(int(rng.binomial(16, p)), 16, int(rng.binomial(24, q)), 24) for _ in range(400)]
    held = [low <= p / q <= high for _, low, high in (ratio(*count) for count in counts)]
    assert np.mean(held) > 0.92
