"""The drawn bolts: damage is on the part that it belongs to, and `data.py demo` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bases import command
from scipy.ndimage import binary_dilation

import data
from data import DataConfig, load_dataset
from dataset.image_files import read_image
from tiny.bolts import CLASSES, PART_OF, PARTS, bolt_parts, draw_bolt
from tiny.bottles import draw_bottle

SEEDS = range(12)


@pytest.mark.parametrize("damage", CLASSES)
def test_masks_tell_what_changed(damage: str) -> None:
    for seed in SEEDS:
        image, mask = draw_bolt(damage, seed, 128)
        before, same = draw_bolt(damage, seed, 128, before=True)
        assert image.shape == (128, 128, 3) and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == ({0} if damage == "good" else {0, CLASSES.index(damage) + 1})
        changed = np.abs(image.astype(int) - before).max(2)
        near = binary_dilation(mask > 0, iterations=6)
        assert (mask == same).all() and (changed[~near] > 24).mean() < 0.003, seed
        assert damage == "good" or changed[mask > 0].mean() > 15, seed
        again = draw_bolt(damage, seed, 128)
        assert (again[0] == image).all() and (again[1] == mask).all()


@pytest.mark.parametrize("damage", PART_OF)
def test_damage_is_on_its_part(damage: str) -> None:
    for seed in SEEDS:
        part = bolt_parts(damage, seed, 128)[draw_bolt(damage, seed, 128)[1] > 0]
        assert (part[part > 0] == 1 + PARTS.index(PART_OF[damage])).mean() > 0.9, seed


def test_poses_vary_and_some_are_partly_outside() -> None:
    shares, turns = [], []
    for seed in range(40):
        parts = bolt_parts("good", seed, 64)
        assert set(np.unique(parts)) <= set(range(5)) and (parts == 0).mean() > 0.5
        shares.append([(parts == 1).any(), (parts == 4).any()])
        y, x = np.nonzero(parts)
        turns.append(np.arctan2(*np.linalg.eigh(np.cov(x, y))[1][::-1, 1]) % np.pi)
    assert 0 < 40 - np.all(shares, axis=1).sum() < 20
    assert (np.histogram(turns, 4, (0, np.pi))[0] >= 4).all()


def test_the_demo_of_bolts_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "bolt"
    outcome = command(data.main, "demo", out, "--product", "bolt", "--per-class", 2)
    assert outcome.status == 0 and "torn_thread" in outcome.out, outcome
    back = load_dataset(DataConfig([str(out)], resolution=64, load_masks=True, augment=False))
    assert sorted(CLASSES) == back.classes and len(back) == 10
    for i, item in enumerate(back.items):
        assert back.example(i, 0)["mask"].any() == (back.classes[item.class_id] != "good")
    assert command(data.main, "doctor", out, "--out", tmp_path / "look.png").status == 0
    assert command(data.main, "demo", out, "--product", "nut").failed_with("--product")
    bottles = command(data.main, "demo", tmp_path / "bottle", "--per-class", 1)
    assert bottles.status == 0 and (read_image(tmp_path / "bottle/image/good/000.png")
                                    == draw_bottle("good", 0)[0]).all()
