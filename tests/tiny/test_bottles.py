"""The drawn pictures: procedural training images and the demo dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from runtime.errors import UserError
from tiny import bottles
from tiny.demo import write_demo
from tiny.grid import to_uint8
from tiny.procedural import VOCABULARY, draw, draw_pair

SEEDS = range(150)
DAMAGED = bottles.CLASSES[:3]


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(S, S) largest change of a channel, 0 to 255."""
    return np.abs(after.astype(int) - before).max(2)


def test_vocabulary() -> None:
    assert VOCABULARY[:2] == ("<start>", "<end>")
    assert len(set(VOCABULARY)) == len(VOCABULARY) <= 96


@pytest.mark.parametrize("size", [64, 128])
def test_procedural_samples_are_well_formed(size: int) -> None:
    for seed in SEEDS:
        image, mask, words = draw(seed, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert mask.shape == (size, size) and mask.dtype == bool
        assert 5 <= len(words) <= 10 and set(words) <= set(VOCABULARY)
        assert mask.any() == ("good" not in words)


def test_procedural_damage_is_where_the_mask_says() -> None:
    good = 0
    for seed in SEEDS:
        clean, (image, mask, _) = draw_pair(seed)
        changed = change(clean, image)
        good += not mask.any()
        assert (changed[~binary_dilation(mask, iterations=4)] > 40).mean() < 0.003, seed
        assert not mask.any() or changed[mask].mean() > 12, seed
    assert 0.15 < good / len(SEEDS) < 0.4


def test_the_demo_product_is_never_seen_damaged() -> None:
    vessels = [words for words in (draw(seed, 32).words for seed in range(600)) if "vessel" in words]
    assert vessels and all("good" in words for words in vessels)


def test_drawing_is_a_pure_function_of_its_seed() -> None:
    first = [draw(seed) for seed in range(20)]
    for seed in reversed(range(20)):
        again = draw(seed)
        assert np.array_equal(again.image, first[seed].image) and again.words == first[seed].words
    for damage in bottles.CLASSES:
        once, twice, other = (bottles.draw_bottle(damage, seed, 64) for seed in (3, 3, 4))
        assert np.array_equal(once[0], twice[0]) and np.array_equal(once[1], twice[1])
        assert not np.array_equal(once[0], other[0])


@pytest.mark.parametrize("damage", bottles.CLASSES)
def test_demo_masks(damage: str) -> None:
    index = bottles.CLASSES.index(damage)
    for seed in range(40):
        image, mask = bottles.draw_bottle(damage, seed, 128)
        assert image.shape == (128, 128, 3) and image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == ({0} if damage == "good" else {0, index + 1})
        rng = np.random.default_rng([index, seed])  # a bottle is drawn before its damage
        changed = change(to_uint8(bottles._bottle(rng, 128).image), image)
        assert (changed[~binary_dilation(mask > 0, iterations=4)] > 24).mean() < 0.003, seed
        assert damage == "good" or changed[mask > 0].mean() > 25, seed


def test_demo_breaks_differ_in_size() -> None:
    large, small = (
        [(bottles.draw_bottle(damage, i, 128)[1] > 0).sum() for i in range(60)] for damage in DAMAGED[:2]
    )
    assert min(large) > max(small) and min(small) >= 81


def test_write_demo_tree(tmp_path: Path) -> None:
    write_demo(tmp_path / "a", 2, seed=7, size=64)
    write_demo(tmp_path / "b", 3, seed=7, size=64)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 2 * (4 + 3 + 3)
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with Image.open(tmp_path / "a/mask/broken_small/001_mask.png") as mask:
        assert mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 2}
    with Image.open(tmp_path / "a/rgb_mask/contamination/000_rgb_mask.png") as mask:
        assert mask.mode == "RGB"


def test_write_demo_refuses_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    for there in (tmp_path, tmp_path / "kept.txt"):
        with pytest.raises(UserError):
            write_demo(there, 1, seed=0, size=64)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]
