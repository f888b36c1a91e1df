"""masks.py, foreground.py, mask_bank.py: no scratch is lost, damage stays on the object, all repeatable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import label
from trees import make_flat, make_product, picture, save, square_mask

import mask_bank
from data import DataConfig, Item
from demo import draw_bottle
from errors import UserError
from foreground import as_seen_in_both, find_object
from header import Header
from mask_bank import MaskBank, MaskFiles, Motion, deal, draw_motion, move, open_masks
from masks import grow, latent_cells, latent_mask, random_mask, training_hole

GOOD_BOTTLE = draw_bottle("good", 3, 192)[0]


def header(data: Path, **changes: object) -> Header:
    """What a checkpoint trained on `data` would say."""
    config = dataclasses.asdict(DataConfig([str(data)], resolution=64)) | changes
    return Header(kind="inpaint", classes=["crack", "dent", "good"], base="x", fingerprint="0", resolution=64,
                  tokens_per_class=1, class_dropout=0.0, rank=1, alpha=1.0, step=0, config=config)


# --- masks ---

@given(row=st.integers(0, 63), column=st.integers(0, 63))
@settings(max_examples=20, deadline=None)
def test_a_single_pixel_reaches_the_latent_mask(row: int, column: int) -> None:
    mask = torch.zeros(1, 1, 64, 64)
    mask[0, 0, row, column] = 1
    expected = torch.zeros(1, 1, 8, 8)
    expected[0, 0, row // 8, column // 8] = 1
    assert torch.equal(latent_mask(mask), expected)
    assert latent_cells(mask[0, 0].numpy().astype(np.uint8)) == 1


@given(seed=st.integers(0, 10**6), side=st.sampled_from([64, 128]))
@settings(max_examples=25, deadline=None)
def test_holes_cover_the_mask_and_a_margin(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, side)
    assert mask.shape == (side, side) and mask.dtype == np.uint8 and 0 < mask.mean() < 0.8
    hole = training_hole(np.random.default_rng(seed), mask)
    assert (hole >= mask).all() and (hole >= grow(mask, side / 128)).all()
    assert (hole <= grow(mask, side / 32)).all() and set(np.unique(hole)) <= {0, 1}
    assert (training_hole(np.random.default_rng(seed), mask) == hole).all()


def test_nothing_grows_from_nothing() -> None:
    assert not grow(np.zeros((8, 8), np.uint8), 3).any()
    assert grow(np.eye(1, 64, 5, dtype=np.uint8), 2).sum() == 5


# --- the object in a photo ---

def test_the_bottle_is_found_and_round() -> None:
    for damage in ("good", "broken_large", "contamination"):
        photo, mask = draw_bottle(damage, 1, 192)
        found = find_object(photo, (mask > 0).astype(np.uint8))
        assert found.round and np.abs(found.centre - 96).max() < 8 and 70 < found.radius < 96
        assert found.region[96, 96] and not found.region[2, 2]


def test_a_square_part_is_no_round_one_and_cloth_is_no_part() -> None:
    photo = np.full((120, 160, 3), 230, np.uint8)
    photo[40:90, 30:90] = (60, 90, 40)
    part = find_object(photo)
    assert not part.round and np.abs(part.centre - (60, 65)).max() < 1.5
    assert 2500 < part.region.sum() < 3600 and part.region[65, 60] and not part.region[10, 10]
    cloth = find_object(picture(0, (160, 120)))
    assert cloth.region.shape == (120, 160) and cloth.region.all() and cloth.freedom > part.freedom


def test_uneven_light_is_no_part() -> None:
    light = np.linspace(150, 250, 160)[None, :, None] * np.ones((120, 1, 3))
    photo = light.astype(np.uint8)
    photo[40:80, 60:100] = 20
    assert np.abs(find_object(photo).centre - (80, 60)).max() < 2


# --- placement ---

@given(angle=st.floats(-180, 180), zoom=st.floats(0.2, 3), slope=st.integers(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_scratch_of_one_pixel_survives_any_move(angle: float, zoom: float, slope: int) -> None:
    mask = np.zeros((90, 90), np.uint8)
    for x in range(20, 70):
        mask[20 + slope * (x - 20), x] = 1
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    linear = zoom * np.array([[c, -s], [s, c]])
    moved = move(mask, Motion(linear, 150 - linear @ np.array([45, 20 + slope * 25]), {}), 300, 300)
    assert label(moved, np.ones((3, 3)))[1] == 1  # in one piece
    y, x = np.nonzero(moved)
    assert np.hypot(np.ptp(x) + 1, np.ptp(y) + 1) >= 0.9 * zoom * 49 * (2**0.5 if slope else 1)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_on_a_round_object_damage_keeps_its_distance_from_the_centre(seed: int) -> None:
    source = find_object(GOOD_BOTTLE)
    target = find_object(np.pad(GOOD_BOTTLE[::2, ::2], ((20, 0), (0, 30), (0, 0)), mode="edge"))
    assert source.round and target.round
    middle = source.centre + (0.7 * source.radius, 0)
    motion = draw_motion(np.random.default_rng(seed), middle, source, target, "any")
    moved = motion.linear @ middle + motion.shift
    assert np.hypot(*(moved - target.centre)) / target.radius == pytest.approx(0.7, abs=1e-6)


def test_where_one_photo_shows_no_object_both_are_whole_pictures() -> None:
    bottle, cloth = find_object(GOOD_BOTTLE), find_object(picture(0, (96, 48)))
    source, target = as_seen_in_both(bottle, cloth)
    assert source.region.all() and target.region.shape == (48, 96) and source.freedom < cloth.freedom
    assert (source.centre == 96).all() and target.radius / source.radius == pytest.approx(
        (96 * 48 / 192**2) ** 0.5)
    assert all(one is bottle for one in as_seen_in_both(bottle, bottle))


def test_fixed_parts_are_not_turned() -> None:
    found = find_object(GOOD_BOTTLE)
    for seed in range(20):
        about = draw_motion(np.random.default_rng(seed), found.centre, found, found, "fixed").about
        assert abs(about["angle"]) <= 10 and not about["flip"]


def bank(folder: Path, count: int = 3, seed: int = 0) -> MaskBank:
    """A bank of the demo's chips."""
    items = []
    for i in range(count):
        photo, mask = draw_bottle("broken_small", i, 192)
        image = save(folder / f"{i}.png", photo)
        items.append(Item(image, save(folder / f"{i}_mask.png", mask), 0, None))
    return MaskBank({"broken_small": items, "good": items}, seed, "any")


def test_the_bank_places_on_the_object_and_can_be_repeated(tmp_path: Path) -> None:
    found = find_object(GOOD_BOTTLE)
    chips = bank(tmp_path)
    placed = [chips.place("broken_small", i, GOOD_BOTTLE) for i in range(9)]
    for one in placed:
        assert one.mask.shape == (192, 192) and found.region[one.mask > 0].mean() > 0.95
        middle = np.argwhere(one.mask).mean(axis=0)[::-1] + 0.5
        assert 0.5 < np.hypot(*(middle - found.centre)) / found.radius < 0.75  # on the lip, where chips are
    names = [Path(one.about["mask"]).name for one in placed]
    assert all(len(set(names[i:i + 3])) == 3 for i in (0, 3, 6))  # each before any comes again
    assert len({one.mask.tobytes() for one in placed}) == 9
    again = bank(tmp_path).place("broken_small", 4, GOOD_BOTTLE)
    assert (again.mask == placed[4].mask).all() and again.about == placed[4].about
    assert (bank(tmp_path, seed=1).place("broken_small", 4, GOOD_BOTTLE).mask != placed[4].mask).any()
    matrix = np.array(placed[4].about["transform"]["matrix"])
    source = np.asarray(Image.open(placed[4].about["mask"])) > 0
    moved = move(source.astype(np.uint8), Motion(matrix[:, :2], matrix[:, 2], {}), 192, 192)
    assert (moved != placed[4].mask).mean() < 1e-3  # the record is enough to do it again


def test_without_a_photo_masks_are_placed_on_their_own(tmp_path: Path) -> None:
    placed = bank(tmp_path).place("good", 0)
    assert placed.mask.shape == (192, 192) and placed.mask.any()


def test_dealt_like_cards() -> None:
    drawn = [deal(5, 7, "photo", number=i) for i in range(15)]
    assert all(sorted(drawn[i:i + 5]) == list(range(5)) for i in (0, 5, 10)) and drawn[:5] != drawn[5:10]


# --- --masks ---

def test_the_checkpoints_own_masks_are_the_default(tmp_path: Path) -> None:
    head = header(make_product(tmp_path / "part"))
    found = open_masks(None, head, ["dent", "good"], 0)
    assert isinstance(found, MaskBank) and set(found.items) == {"dent", "good"}
    assert len(found.items["dent"]) == 3 and len(found.items["good"]) == 6  # good borrows all
    assert {item.mask.parent.name for item in found.items["dent"]} == {"dent"}


def test_another_datasets_masks(tmp_path: Path) -> None:
    head = header(make_product(tmp_path / "part"), max_samples_per_damage_type=1)
    other = make_product(tmp_path / "other", ("crack", "hole"), count=2)
    found = open_masks(str(other), head, ["crack"], 0)
    assert isinstance(found, MaskBank) and len(found.items["crack"]) == 2
    with pytest.raises(UserError, match=r"other: has no masks of dent.*--masks"):
        open_masks(str(other), head, ["dent"], 0)


def test_in_a_flat_source_each_class_has_its_own_region(tmp_path: Path) -> None:
    head = header(make_flat(tmp_path / "DS-DAGM", [(1, 3)]))
    found = open_masks(None, head, ["scratch", "crush"], 0)
    scratch, crush = (found.place(name, 0).about["mask"] for name in ("scratch", "crush"))
    assert scratch == crush and found.items["scratch"][0].mask_value != found.items["crush"][0].mask_value


def test_lost_training_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.*--masks"):
        open_masks(None, header(tmp_path / "gone"), ["crack"], 0)
    with pytest.raises(UserError, match="nowhere"):
        open_masks(str(tmp_path / "nowhere"), header(tmp_path), ["crack"], 0)


def test_given_files(tmp_path: Path) -> None:
    save(tmp_path / "all" / "b_mask.png", square_mask(255))
    save(tmp_path / "all" / "a.png", square_mask(1, (50, 40)))
    save(tmp_path / "all" / "dent" / "c.png", square_mask(2))
    found = open_masks(str(tmp_path / "all"), header(tmp_path), ["crack", "dent"], 0)
    assert isinstance(found, MaskFiles)
    names = [Path(found.place("crack", i).about["mask"]).name for i in range(3)]
    assert names == ["a.png", "b_mask.png", "a.png"]
    assert found.place("crack", 1).mask.sum() == 16 * 16 and found.place("dent", 5).mask.max() == 1
    photos = [save(tmp_path / "photos" / f"{name}.png", picture(i)) for i, name in enumerate("bxy")]
    assert found.photo_for("crack", 1, photos).name == "b.png"  # of the same name
    assert found.photo_for("dent", 0, photos) in photos
    with pytest.raises(UserError, match=r"a\.png: 50x40, but its photo .* is 96x96"):
        found.photo_for("crack", 0, photos)


def test_given_files_that_are_no_use(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"--masks .*none: no mask files for crack"):
        open_masks(str(tmp_path / "none"), header(tmp_path), ["crack"], 0)
    save(tmp_path / "blank" / "0.png", square_mask(0))
    with pytest.raises(UserError, match=r"0\.png: an empty mask"):
        open_masks(str(tmp_path / "blank"), header(tmp_path), ["crack"], 0)


def test_a_photo_too_small_for_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_bank, "move", lambda mask, motion, height, width: np.zeros((height, width)))
    with pytest.raises(UserError, match=r"_mask\.png: cannot be placed within a photo of 192x192"):
        bank(tmp_path).place("broken_small", 0, GOOD_BOTTLE)
