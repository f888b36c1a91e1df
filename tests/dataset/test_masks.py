"""Masks and holes, and the mask bank: no scratch is lost, and what the bank deals can be repeated."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from trees import make_flat, make_product, picture, save, square_mask

from checkpoints.metadata import Header
from data import DataConfig, Item
from dataset.masks import grow, latent_cells, latent_mask, random_mask, training_hole
from dataset.paste import DoesNotFit
from dataset.placement import Motion, move
from runtime.errors import UserError
from sampling.mask_bank import MaskBank, MaskFiles, open_masks, shuffled
from tiny.bottles import draw_bottle

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


# --- the bank ---

def bank(folder: Path, count: int = 3, seed: int = 0) -> MaskBank:
    """A bank of the demo's chips."""
    items = []
    for i in range(count):
        photo, mask = draw_bottle("broken_small", i, 192)
        image = save(folder / f"{i}.png", photo)
        items.append(Item(image, save(folder / f"{i}_mask.png", mask), None, "", "broken_small", 0))
    return MaskBank({"broken_small": items, "good": items}, seed, "any")


def test_what_the_bank_places_can_be_repeated(tmp_path: Path) -> None:
    chips = bank(tmp_path)
    placed = [chips.place("broken_small", i, GOOD_BOTTLE) for i in range(6)]
    names = [Path(one.about["mask"]).name for one in placed]
    assert all(len(set(names[i:i + 3])) == 3 for i in (0, 3))  # each before any comes again
    assert len({one.mask.tobytes() for one in placed}) == 6
    again = bank(tmp_path).place("broken_small", 4, GOOD_BOTTLE)
    assert (again.mask == placed[4].mask).all() and again.about == placed[4].about
    assert (bank(tmp_path, seed=1).place("broken_small", 4, GOOD_BOTTLE).mask != placed[4].mask).any()
    matrix = np.array(placed[4].about["transform"]["matrix"])
    source = np.asarray(Image.open(placed[4].about["mask"])) > 0
    moved = move(source.astype(np.uint8), Motion(matrix[:, :2], matrix[:, 2], 1.0, {}), 192, 192)
    assert (moved != placed[4].mask).mean() < 1e-3  # the record is enough to do it again


def test_without_a_photo_masks_are_placed_on_each_others(tmp_path: Path) -> None:
    placed = [bank(tmp_path).place("good", number) for number in range(3)]
    assert all(one.mask.shape == (192, 192) and one.mask.any() for one in placed)


def test_where_a_mask_finds_no_place_other_photos_and_then_other_masks_are_tried(tmp_path: Path) -> None:
    chips, photos = bank(tmp_path), [Path(name) for name in "abcde"]
    assert {chips.photo_for("good", 7, photos, attempt) for attempt in range(5)} == set(photos)
    cloth = picture(3, (192, 192))
    with pytest.raises(DoesNotFit, match=r"_mask\.png: no place on a photo looks like.*--placement-only"):
        chips.place("broken_small", 0, cloth)
    masks = [chips.place("broken_small", 0, GOOD_BOTTLE, attempt).about["mask"] for attempt in (0, 3, 4)]
    assert masks[0] == masks[1] != masks[2]


def test_dealt_like_cards() -> None:
    drawn = [shuffled(5, 7, "photo", number=i) for i in range(15)]
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
    loud = MaskFiles({"crack": [Path("Y_MASK.png")]}, 0)  # as data of --data are paired
    loud._sizes[Path("Y_MASK.png")] = 96, 96
    assert loud.photo_for("crack", 0, [photos[0], photos[1], photos[2].rename(photos[2].with_name("Y.png"))]
                          ).name == "Y.png"
    photos[2] = photos[2].with_name("Y.png")
    assert found.photo_for("dent", 0, photos) in photos
    with pytest.raises(DoesNotFit, match=r"a\.png: 50x40, but its photo .* is 96x96"):
        found.photo_for("crack", 0, photos)
    assert found.photo_for("crack", 0, photos, attempt=1).name == "b.png"  # the next mask
    photos.append(save(tmp_path / "photos" / "z.png", picture(9, (50, 40))))
    assert found.photo_for("crack", 0, photos).name == "z.png"  # another photo, of the mask's size


def test_given_files_that_are_no_use(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"--masks .*none: no mask files for crack"):
        open_masks(str(tmp_path / "none"), header(tmp_path), ["crack"], 0)
    save(tmp_path / "blank" / "0.png", square_mask(0))
    with pytest.raises(UserError, match=r"0\.png: an empty mask"):
        open_masks(str(tmp_path / "blank"), header(tmp_path), ["crack"], 0)
