"""Judges: what they learn from, what they answer, and how far their answers can be trusted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trees import picture

from benchmarks.coverage import SETTINGS, coverage
from evaluation.judges import DIVISIONS, NEVER, Judges, fit_judges, fit_linear, judge_features, right_share
from evaluation.networks import LITE, Network, load_network

CPU = torch.device("cpu")
NAMES = ["dark", "light"]


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network(LITE, None, CPU)


def tones(count: int) -> tuple[torch.Tensor, np.ndarray]:
    """Dark and light pictures in turn, (count, 3, 128, 128), and their classes."""
    levels = [picture(i, (128, 128)).astype(float) / 8 + (40, 200)[i % 2] for i in range(count)]
    return torch.from_numpy(np.stack(levels)).permute(0, 3, 1, 2).float() / 127.5 - 1, np.arange(count) % 2


def test_none_judges_what_it_learnt_from(network: Network) -> None:
    """Each division leaves each photo to one judge, and all are right on easy classes."""
    image, label = tones(8)
    before = torch.get_rng_state()
    judges, answers = fit_judges(network, image, label, NAMES, 4, 0, "any")
    assert torch.equal(torch.get_rng_state(), before)
    assert answers.shape == (4 * DIVISIONS, 8) and judges.folds == 4
    assert ((answers != NEVER).sum(0) == DIVISIONS).all()
    assert ((answers == label) | (answers == NEVER)).all()
    assert (judges([image]) == label).all()


def test_turned_images_are_judged_alike(network: Network) -> None:
    image, label = tones(8)
    features = judge_features(network, image, "any")
    turned = judge_features(network, image.rot90(1, (2, 3)), "any")
    torch.testing.assert_close(features[1], turned[0])
    assert len(judge_features(network, image, "fixed")) == 1
    judges, _ = fit_judges(network, image, label, NAMES, 2, 0, "any")
    features[1] = features[0]
    np.testing.assert_array_equal(judges.answers(features), judges.answers(features[:1]))


def test_the_features_are_of_the_maps_at_strides_8_and_16(network: Network) -> None:
    seen, channels, size = [], (40, 112), 224
    for stage in network.maps.stages:
        stage.register_forward_hook(lambda module, args, output: seen.append(output))
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = network.maps(image)[0]
    assert [tuple(found.shape[1:]) for found in seen] == [(channels[0], size // 8, size // 8),
                                                         (channels[1], size // 16, size // 16)]
    assert network.blocks == tuple(2 * count for count in channels)
    assert features.shape == (sum(network.blocks),)
    torch.testing.assert_close(features[channels[0]:2 * channels[0]], seen[0].amax((0, 2, 3)))


def test_the_layer_is_the_minimum_of_its_loss_and_blocks_weigh_alike() -> None:
    """scikit-learn is not at hand: the gradient of the regularised loss vanishes at what fit_linear finds."""
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(40) % 3
    x = torch.randn(40, 12, generator=rng) * 5 + 2 + label[:, None]
    weight, bias = fit_linear(x, (4, 8), label, 3)
    scale = torch.cat([torch.full((4,), 0.5), torch.full((8,), 8 ** -0.5)]) / (x.std(0) + 1e-3)
    inner = (weight / scale).requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(x @ (inner * scale).T + bias, label)
    (loss + 1e-3 / 2 * inner.square().sum()).backward()
    assert inner.grad.abs().max() < 2e-3
    assert fit_linear(x, (4, 8), label, 3)[0].equal(weight)


def test_shares_of_right_answers() -> None:
    label = np.zeros(10, int)
    agreed = np.zeros((6, 10), int)
    share = right_share(agreed, label, 3)
    assert share["value"] == share["high"] == 1 and 0.6 < share["low"] < 0.8 and share["judges"] == 6
    split = np.stack([agreed[0], 1 - agreed[0]] * 3)  # judges that agree on nothing, on equal images
    doubtful = right_share(split, label, 3)
    assert doubtful["value"] == 0.5 and doubtful["low"] < 0.1 and doubtful["high"] > 0.9
    unseen = np.full((2, 4), NEVER)
    unseen[0, :2] = 0
    part = right_share(unseen, label[:4], 2)
    assert part["n"] == 2 and part["value"] == 1
    assert right_share(unseen[:, 2:], label[:2], 2)["value"] is None


def test_intervals_hold_the_truth() -> None:
    """Where the judges vary most, as benchmarks.coverage measures with more experiments."""
    found = coverage(SETTINGS[1], 30)
    assert found["held"] >= 0.9 > found["held_by_images_alone"] and found["held_real"] >= 0.9


def test_photos_are_read_in_batches(network: Network, tmp_path: Path) -> None:
    image, label = tones(8)
    judges, _ = fit_judges(network, image, label, NAMES, 2, 0, "fixed")
    whole = judges([image])
    np.testing.assert_array_equal(judges([image[:3], image[3:]]), whole)
    assert judges([]).shape == (len(judges.weight), 0)
    assert isinstance(judges, Judges)
