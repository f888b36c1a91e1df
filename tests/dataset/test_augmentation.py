"""augmentation.py: paired, without wedges, and never losing the damage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from trees import picture, save

from data import DataConfig, load_dataset
from dataset.augmentation import IDENTITY, draw_motion, prepare, relight, square_box, warp, warp_mask
from runtime.seeds import numpy_rng

seeds_and_sizes = given(seed=st.integers(0, 10**6), side=st.integers(20, 300),
                        resolution=st.sampled_from([64, 128]), orientation=st.sampled_from(["any", "fixed"]))


def blob(seed: int, side: int) -> np.ndarray:
    """(S,S) uint8 in {0,1}: a rectangle of at least a fifth of the side, anywhere."""
    rng, mask = np.random.default_rng(seed), np.zeros((side, side), np.uint8)
    height, width = rng.integers(side // 5, side // 2, size=2)
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    mask[top:top + height, left:left + width] = 1
    return mask


@seeds_and_sizes
@settings(max_examples=60, deadline=None)
def test_masks_stay_on_their_image(seed: int, side: int, resolution: int, orientation: str) -> None:
    full = blob(seed, side)
    box = square_box((side, side))
    mask = prepare(full, box, resolution)
    image = prepare(np.repeat(full[..., None] * 255, 3, axis=2), box, resolution)
    motion = draw_motion(numpy_rng(seed), orientation, mask)
    seen, region = warp(image, motion, resolution), warp_mask(mask, motion, resolution)
    assert seen.shape == (resolution, resolution, 3) and region.shape == (resolution, resolution)
    assert set(np.unique(region)) <= {0, 1}
    # The image is white on the damage. Each lies within a pixel of the other, of source or output.
    near = ImageFilter.MaxFilter(2 * math.ceil(resolution / side) + 1)
    white, touched = (seen[..., 0] > 127).astype(np.uint8), (seen[..., 0] > 0).astype(np.uint8)
    assert (white <= np.asarray(Image.fromarray(region).filter(near))).all()
    assert (region <= np.asarray(Image.fromarray(touched).filter(near))).all()
    assert region.sum() >= 0.7 * full.mean() * resolution ** 2  # still in the picture


@seeds_and_sizes
@settings(max_examples=60, deadline=None)
def test_no_wedges(seed: int, side: int, resolution: int, orientation: str) -> None:
    """A white picture stays white, in geometry and in tone; a grey one stays one grey."""
    motion = draw_motion(numpy_rng(seed), orientation)
    for level in (255, 90):
        constant = np.full((side, side, 3), level, np.uint8)
        assert (warp(constant, motion, resolution) == level).all()
    assert (relight(np.full((4, 4, 3), 255, np.uint8), numpy_rng(seed)) == 1).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_light_keeps_black_white_and_order(seed: int) -> None:
    levels = relight(np.arange(256, dtype=np.uint8), numpy_rng(seed))
    assert levels.dtype == np.float32 and levels[0] == 0 and levels[-1] == pytest.approx(1)
    assert (np.diff(levels) > 0).all() and np.abs(levels - np.arange(256) / 255).max() < 0.08


def test_orientation_fixed_never_flips() -> None:
    for seed in range(50):
        linear = draw_motion(numpy_rng(seed), "fixed")[:, :2]
        assert np.abs(linear - np.eye(2)).max() < 0.2
    turns = {tuple(np.round(draw_motion(numpy_rng(seed), "any")[:, :2]).ravel()) for seed in range(100)}
    assert len(turns) == 8


def test_damage_at_the_very_border_stays_in_the_picture() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:3, :3] = 1
    for seed in range(100):
        motion = draw_motion(numpy_rng(seed), "any", mask)
        assert warp_mask(mask, motion, 100).sum() >= 6


def test_thin_scratches_survive_shrinking(tmp_path: Path) -> None:
    image, mask = np.full((1200, 1200, 3), 200, np.uint8), np.zeros((1200, 1200), np.uint8)
    mask[600, 200:1000] = 1
    save(tmp_path / "image" / "scratch" / "0.png", image)
    save(tmp_path / "mask" / "scratch" / "0_mask.png", mask)
    config = DataConfig(data=[str(tmp_path)], load_masks=True, augment=False)
    assert load_dataset(config, resolution=64).example(0, 0)["mask"].sum() >= 42


@pytest.mark.parametrize("side", [64, 96, 130, 1000])
def test_identity_is_a_plain_resize(side: int) -> None:
    image = picture(3, (side, side))
    small = warp(prepare(image, square_box((side, side)), 64), IDENTITY, 64)
    plain = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - plain).mean() < 3
