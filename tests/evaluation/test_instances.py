"""Damaged places, counted in pictures whose count is known: in masks, and without them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bases import command
from trees import save

import evaluate
from evaluation.instances import numbers_of
from evaluation.numbers import Metric
from evaluation.visible_damage import Counter, calibrate, regions

SIDE = 64


def plate(seed: int, spots: int, contrast: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A plate (S, S, 3) uint8 of its own brightness with so many bright spots, and their mask (S, S)."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for place in rng.choice(16, spots, replace=False):
        row, column = 16 * (place // 4) + 4, 16 * (place % 4) + 4
        mask[row:row + 8, column:column + 8] = 1
    image = rng.uniform(90, 110) + rng.normal(0, 3, (SIDE, SIDE)) + contrast * mask
    return np.repeat(image[..., None], 3, 2).round().astype(np.uint8), mask


def plates(counts: list[int], first: int, contrast: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, S, S) in [-1, 1] with so many spots, and masks (N, S, S) of booleans."""
    pairs = [plate(first + i, spots, contrast) for i, spots in enumerate(counts)]
    images = np.stack([image for image, _ in pairs]).transpose(0, 3, 1, 2)
    return (images / 127.5 - 1).astype(np.float32), np.stack([mask for _, mask in pairs]) > 0


def test_regions_of_a_mask() -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    assert regions(mask) == [0]
    mask[:8, :8] = mask[8:16, 8:16] = True  # they share a corner
    mask[30:40, 30:40] = True
    mask[50, 50] = True  # a speck: 1 pixel of 4096
    assert regions(mask) == [2] and regions(mask, (0.0, 0.001, 0.03, 0.1)) == [3, 2, 1, 0]


@pytest.mark.parametrize("orientation", ["any", "fixed"])
def test_visible_places_are_counted(orientation: str) -> None:
    """From photos with one spot each, so that those with two are made from them."""
    image, mask = plates([1] * 6, 0)
    counter = calibrate(image, mask, plates([0] * 6, 100)[0], orientation)
    assert isinstance(counter, Counter), counter
    assert counter.real.tolist() == [1] * 6 and all(right == n for right, n in counter.agreement.values())
    assert counter.agreement["photos with several"][1] == 6
    wanted = [0, 1, 2, 3, 5]
    assert counter(plates(wanted, 200)[0]).tolist() == wanted


def test_what_cannot_be_counted_is_not() -> None:
    good = plates([0] * 6, 100)[0]
    unseen = calibrate(*plates([1] * 6, 0, contrast=0), good, "any")
    assert isinstance(unseen, str) and unseen.startswith("of 6 photos with")
    few = calibrate(*plates([1] * 4, 0), good, "any")
    assert few == "of 4 photos with one damaged place 4 are counted right; it takes 80% of 5 or more"


def test_the_numbers() -> None:
    found = numbers_of(np.array([1, 1, 1, 3]), 0, "chip")
    places, several = found[Metric.PLACES], found[Metric.SEVERAL_PLACES]
    assert places["value"] == 1.5 and places["low"] == 1 and 2 <= places["high"] <= 3
    assert several["value"] == 0.25 and 0 < several["low"] < 0.25 < several["high"] < 1
    same = numbers_of(np.ones(4, int), 0, "chip")[Metric.PLACES]
    assert same["value"] == 1 and same["low"] is None


def test_through_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """chip: generated without masks, twice where photos have one; dirt: with masks; film: invisible."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "load_networks", lambda *arguments: {})  # counting takes none
    real, fake = {"chip": (1, 60), "dirt": (1, 60), "film": (1, 0), "good": (0, 0)}, {"chip": 2, "dirt": 3}
    for number, (name, (spots, contrast)) in enumerate(real.items()):
        for i in range(6):
            image, mask = plate(1000 * number + i, spots, contrast)
            save(Path(f"real/image/{name}/{i:03}.png"), image)
            if spots:
                save(Path(f"real/mask/{name}/{i:03}_mask.png"), mask)
        for i in range(3):
            image, mask = plate(1000 * number + 100 + i, fake.get(name, spots), contrast)
            save(Path(f"fake/image/{name}/{i:03}.png"), image)
            if name == "dirt":
                save(Path(f"fake/mask/{name}/{i:03}_mask.png"), mask)
    outcome = command(evaluate.main, "--real", "real", "--fake", "fake", "--out", "out")
    assert outcome.status == 0, outcome
    found = json.loads(Path("out/metrics.json").read_text())["numbers"]
    for row, chip, dirt in (("generated", 2, 3), ("held-out real", 1, 1)):
        assert found[row]["chip"]["places"]["value"] == chip and found[row]["dirt"]["places"]["value"] == dirt
        assert found[row]["chip"]["several_places"]["value"] == float(chip > 1)
    assert found["generated"]["chip"]["places"]["agreement"]["photos with one damaged place"] == [6, 6]
    assert "agreement" not in found["generated"]["dirt"]["places"]
    assert found["generated"]["film"]["places"]["value"] is None and "places" not in found["generated"]["all"]
    assert "film cannot be counted without masks: of 6 photos with" in outcome.out
    assert "damaged places" in outcome.out and "places" not in found["generated"]["good"]
