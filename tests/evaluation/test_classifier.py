"""The judge of demo images, on a training of seconds; and what all judges learn from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bases import Outcome, command

from evaluation.classifier import augmented, warped
from tiny import judge
from tiny.bottles import CLASSES
from tiny.demo import write_demo


def run(*arguments: object) -> Outcome:
    return command(judge.main, *arguments)


@pytest.fixture
def bottles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """2 demo images a class; and a judge that is trained and tested on 8 a class, in one step."""
    monkeypatch.setattr(judge, "EPOCHS", 1)
    monkeypatch.setattr(judge, "demo_images", lambda first, per_class, draw=judge.demo_images: draw(first, 8))
    write_demo(tmp_path / "bottle", 2, seed=1, size=64)
    return tmp_path / "bottle"


def test_it_counts_every_image(bottles: Path) -> None:
    outcome = run(bottles, bottles, "--per-class", 8)
    assert outcome.status == 0 and outcome.out.count("/8 = ") == 2
    assert all(f"  {name}" in outcome.out for name in CLASSES)


def test_a_judge_that_was_kept_judges_the_same(bottles: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "kept" / "judge.safetensors"
    first = run(bottles, "--per-class", 8, "--weights", weights)
    assert first.status == 0
    assert run(bottles, "--per-class", 9, "--weights", weights).failed_with("--weights", "--per-class 9")
    monkeypatch.setattr(judge, "train", None)
    assert run(bottles, "--per-class", 8, "--weights", weights).out == first.out
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(bottles, "--per-class", 8, "--weights", weights).failed_with("judge.safetensors", "damaged")


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    write_demo(tmp_path / "bottle", 1, seed=1, size=64)
    bad = tmp_path / "bottle" / "image" / "good" / "000.png"
    assert run(tmp_path / "bottle", "--per-class", 0).failed_with("--per-class", "0 is too small")
    assert run().failed_with("FOLDER")
    bad.write_bytes(bad.read_bytes()[:200])
    for folder, named in ((tmp_path / "bottle", str(bad)), (tmp_path / "nothing", "nothing")):
        assert run(folder).failed_with(named)


@pytest.mark.parametrize("size", [64, 256])
def test_warps_are_soft_and_grow_with_the_picture(size: int) -> None:
    """A ramp from -1 to 1 shows how far it was moved: by a normal amount of 0 to 2.3 % of the side."""
    ramp = torch.linspace(-1, 1, size).expand(64, 3, size, size)
    moved = (warped(ramp, torch.Generator().manual_seed(0)) - ramp)[:, 0] / 2
    inner = moved[:, size // 8:-size // 8, size // 8:-size // 8]
    strength = inner.std((1, 2))
    assert 0.008 < inner.std() < 0.018 and strength.min() < 0.004 and strength.max() > 0.015
    assert inner.diff(dim=1).abs().max() * size < 1  # no pixel overtakes its neighbour: nothing tears


def test_parts_that_lie_one_way_are_not_turned() -> None:
    half = torch.ones(1, 3, 64, 64)
    half[:, :, :32] = -1
    for seed in range(8):
        seen = augmented(half, torch.Generator().manual_seed(seed), "fixed")
        assert seen[:, :, :20].mean() < -0.5 and seen[:, :, 44:].mean() > 0.5
