"""Where masks go on other photos: where their surroundings look alike, whatever the product."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bases import command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label
from trees import make_product, picture

import data
from dataset.foreground import find_object
from dataset.placement import Motion, move, place
from dataset.registration import CELLS, MARGIN, PERIOD, WINDOW, correlation, scales
from dataset.views import View, view_of
from runtime.seeds import numpy_rng
from tiny.bolts import PART_OF, PARTS, bolt_parts, draw_bolt
from tiny.bottles import draw_bottle


def bottle(damage: str, seed: int = 1, side: int = 192) -> tuple[np.ndarray, np.ndarray]:
    image, mask = draw_bottle(damage, seed, side)
    return image, (mask > 0).astype(np.uint8)


def middle(mask: np.ndarray) -> np.ndarray:
    """(x, y), in shares of the picture's width."""
    return (np.argwhere(mask).mean(axis=0)[::-1] + 0.5) / mask.shape[1]


def turned(linear: np.ndarray) -> float:
    """Degrees that a motion turns by, and whether it mirrors."""
    return float(np.degrees(np.arctan2(linear[1, 0], linear[0, 0])))


# --- the object in a photo ---

def test_an_object_is_found_and_cloth_is_none() -> None:
    photo = np.full((60, 80, 3), 230, np.float32)
    photo[20:45, 15:45] = (60, 90, 40)
    region = find_object(photo)
    assert region is not None and 600 < region.sum() < 900 and region[32, 30] and not region[5, 5]
    light = np.linspace(150, 250, 80)[None, :, None] * np.ones((60, 1, 3))  # uneven light is no object
    light[20:40, 30:50] = 20
    region = find_object(light.astype(np.float32))
    assert region is not None and np.abs(np.argwhere(region).mean(axis=0) - (29.5, 39.5)).max() < 1
    assert find_object(picture(0, (80, 60)).astype(np.float32)) is None


# --- the score ---

def test_the_score_is_the_correlation_and_even_surfaces_prove_nothing() -> None:
    rng = np.random.default_rng(0)
    a, b, w = rng.normal(0, 50, (1, 400)), rng.normal(0, 50, (1, 400)), np.full(400, 1 / 400)

    def score(a: np.ndarray, b: np.ndarray, even: float = 0.0) -> float:
        return float(correlation(w.sum(), a @ w, np.square(a).sum(0) @ w, b @ w, np.square(b).sum(0) @ w,
                                 (a * b).sum(0) @ w, 1.0, even))

    assert score(a, a) == pytest.approx(1, abs=0.03) and score(a, -a) == pytest.approx(-1, abs=0.03)
    assert score(a, a + 40) == pytest.approx(score(a, a))  # brighter light
    assert score(a, b) == pytest.approx(np.corrcoef(a[0], b[0])[0, 1], abs=0.02)
    assert score(0 * a, 0 * b) == 0 and score(0 * a, 0 * b, even=1.0) == 1


def test_shifts_do_not_wrap() -> None:
    assert PERIOD >= CELLS + WINDOW // 2 + MARGIN


def test_scales() -> None:
    """By size where both objects are whole, by several where one is cut off, by the photos else."""
    whole, small = (view_of(bottle("good", 3, side)[0]) for side in (192, 96))
    assert scales(whole, small) == pytest.approx([1.0], abs=0.02)
    half = view_of(np.pad(bottle("good", 3)[0], ((96, 96), (96, 96), (0, 0)), "edge"))
    assert scales(whole, half) == pytest.approx([0.5], abs=0.03)
    part = np.full((120, 160, 3), 230, np.uint8)
    part[40:60, 20:140] = (60, 90, 40)
    assert len(scales(view_of(part), view_of(part[:, 50:130]))) > 1
    assert scales(whole, view_of(picture(0, (96, 48)))) == pytest.approx([0.5**0.5])


# --- placement ---

@given(angle=st.floats(-180, 180), zoom=st.floats(0.2, 3), slope=st.integers(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_scratch_of_one_pixel_survives_any_move(angle: float, zoom: float, slope: int) -> None:
    mask = np.zeros((90, 90), np.uint8)
    for x in range(20, 70):
        mask[20 + slope * (x - 20), x] = 1
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = zoom * np.array([[c, -s], [s, c]])
    motion = Motion(linear, 150 - linear @ np.array([45, 20 + slope * 25]), 1.0, {})
    moved = move(mask, motion, 300, 300)
    assert label(moved, np.ones((3, 3)))[1] == 1  # in one piece
    y, x = np.nonzero(moved)
    assert np.hypot(np.ptp(x) + 1, np.ptp(y) + 1) >= 0.9 * zoom * 49 * (2**0.5 if slope else 1)


@pytest.mark.parametrize("damage", ["broken_small", "contamination"])
def test_on_a_bottle_damage_keeps_its_distance_from_the_centre_and_takes_every_angle(damage: str) -> None:
    photo, mask = bottle(damage, 5)
    source, angles = view_of(photo, mask), []
    for number in range(16):
        target = bottle("good", number % 4, 96)[0]
        found = place(numpy_rng("bottle", number), source, view_of(target), "any")
        if found is None:  # the light may differ too much
            continue
        away = [np.hypot(*(middle(where) - middle(find_object(image.astype(np.float32)))))
                for image, where in ((photo, mask), (target, move(mask, found, 96, 96)))]
        assert away[1] == pytest.approx(away[0], abs=0.04)
        angles.append(np.radians(turned(found.linear)))
    assert len(angles) >= 12 and abs(np.exp(1j * np.array(angles)).mean()) < 0.75  # 1: all the same


@pytest.mark.parametrize("damage", PART_OF)
def test_on_a_bolt_damage_goes_to_its_part(damage: str) -> None:
    right, placed = 0, 0
    for number in range(10):
        photo, mask = draw_bolt(damage, number, 128)
        target, parts = draw_bolt("good", 40 + number, 128)[0], bolt_parts("good", 40 + number, 128)
        mask = (mask > 0).astype(np.uint8)
        found = place(numpy_rng("bolt", number), view_of(photo, mask), view_of(target), "any")
        if found is not None:
            there = parts[move(mask, found, 128, 128) > 0]
            placed += 1
            right += np.bincount(there[there > 0], minlength=5).argmax() == 1 + PARTS.index(PART_OF[damage])
    assert placed >= 3 and right >= placed - 1


def test_on_cloth_damage_goes_everywhere() -> None:
    rng = np.random.default_rng(0)
    cloth = [rng.normal(128, 30, (96, 96, 1)).clip(0, 255).astype(np.uint8).repeat(3, 2) for _ in range(2)]
    mask = np.zeros((96, 96), np.uint8)
    mask[40:50, 40:50] = 1
    views = view_of(cloth[0], mask), view_of(cloth[1])
    places = [place(numpy_rng("cloth", i), *views, "any") for i in range(24)]
    middles = np.array([middle(move(mask, found, 96, 96)) for found in places if found])
    assert len(middles) == 24 and np.ptp(middles, axis=0).min() > 0.6
    quarters = np.histogram2d(*middles.T, bins=2, range=[[0, 1], [0, 1]])[0]
    assert quarters.min() >= 1


def test_a_placement_is_a_function_of_its_generator() -> None:
    source, target = view_of(*bottle("broken_large")), view_of(bottle("good", 2)[0])
    one, again, other = (place(numpy_rng("x", key), source, target, "any") for key in (0, 0, 1))
    assert one is not None and again is not None and other is not None
    assert one.about == again.about and (one.linear == again.linear).all() and one.about != other.about


def test_fixed_parts_are_hardly_turned_and_not_mirrored() -> None:
    photo, mask = bottle("broken_small")
    source, target = view_of(photo, mask), view_of(draw_bottle("broken_small", 1, 192, before=True)[0])
    for number in range(8):
        found = place(numpy_rng("fixed", number), source, target, "fixed")
        assert found is not None and abs(turned(found.linear)) <= 10 and np.linalg.det(found.linear) > 0


def test_jitter_varies_and_none_does_not() -> None:
    """On its own photo a damage on a bolt has one place, and there jitter is all that varies."""
    photo, mask = draw_bolt("scratched_head", 2, 192)
    view = view_of(photo, (mask > 0).astype(np.uint8))

    def motions(jitter: float) -> list[Motion]:
        found = [place(numpy_rng("jitter", number), view, view, "fixed", jitter) for number in range(5)]
        return [motion for motion in found if motion is not None]

    still, varied = motions(0.0), motions(0.2)
    assert len(still) == len(varied) == 5
    spread = [np.std([motion.linear for motion in group], axis=0).max() for group in (still, varied)]
    assert spread[0] < 0.03 < spread[1]


def test_another_product_has_no_place() -> None:
    bolt = draw_bolt("scratched_head", 2, 192)
    sources = [view_of(bolt[0], (bolt[1] > 0).astype(np.uint8)), view_of(*bottle("broken_small"))]
    targets = [view_of(bottle("good", 2)[0]), view_of(draw_bolt("good", 5, 192)[0])]
    for source, target in zip(sources, targets, strict=True):
        assert place(numpy_rng("other"), source, target, "any") is None
    assert place(numpy_rng("other"), sources[1], view_of(picture(0)), "any") is None


@given(width=st.integers(2, 200), height=st.integers(2, 200), seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_any_photo_and_mask_end_well(width: int, height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[rng.integers(height), rng.integers(width)] = 1
    mask |= np.uint8(seed % 4 == 0)  # all of the photo
    source: View = view_of(photo, mask)
    for target in (photo[:, ::-1], np.zeros_like(photo), bottle("good")[0]):
        found = place(numpy_rng(seed), source, view_of(np.ascontiguousarray(target)), "any")
        assert found is None or np.isfinite(found.linear).all() and np.isfinite(found.shift).all()


# --- the doctor's sheet ---

def test_doctor_shows_where_masks_would_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(data.main, "demo", "bolt", "--product", "bolt", "--per-class", 2).status == 0
    outcome = command(data.main, "doctor", "bolt", "--out", "look.png")
    assert outcome.status == 0 and "find a place on an undamaged photo:" in outcome.out, outcome
    with Image.open("look-placement.png") as sheet:
        assert sheet.height > 192
    outcome = command(data.main, "doctor", make_product(tmp_path / "part", ("crack",)), "--out", "b.png")
    assert "find a place" not in outcome.out and not Path("b-placement.png").exists()
