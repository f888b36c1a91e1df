"""windows.py, item_views.py: no damage is lost, small damage is seen large, square photos stay as before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import make_product, picture, save, square_mask

from data import DataConfig, DefectDataset, load_dataset
from dataset.augmentation import draw_motion, prepare, relight, warp, warp_mask
from dataset.image_files import read_image
from dataset.masks import latent_cells
from dataset.windows import BORDER, cells_of, longer_side, moved_place, places_of, widened
from runtime.errors import UserError
from runtime.seeds import numpy_rng
from training.holes import load_holes


def load(folder: Path, view: str, **options: object) -> DefectDataset:
    settings = {"resolution": 64, "load_masks": True, "view": view, **options}
    return load_dataset(DataConfig([str(folder)], **settings))


@st.composite
def damaged(draw: st.DrawFn) -> np.ndarray:
    """A mask of any shape with one to nine boxes of any size."""
    height, width = draw(st.integers(40, 300)), draw(st.integers(40, 300))
    mask, rng = np.zeros((height, width), np.uint8), np.random.default_rng(draw(st.integers(0, 10**6)))
    for _ in range(draw(st.integers(1, 9))):
        top, left = rng.integers(height), rng.integers(width)
        mask[top:top + rng.integers(1, 1 + height // draw(st.sampled_from([1, 4, 20]))),
             left:left + rng.integers(1, 1 + width // draw(st.sampled_from([1, 4, 20])))] = 1
    return mask


@given(mask=damaged(), kind=st.sampled_from(["whole", "close"]))
@settings(max_examples=60)
def test_places_hold_all_damage_and_fit_into_a_view(mask: np.ndarray, kind: str) -> None:
    left = mask.copy()
    for top, start, bottom, end in (places := places_of(mask, kind, 64)):
        left[top:bottom, start:end] = 0
        assert longer_side((top, start, bottom, end)) <= min(mask.shape)
    assert not left.any() and cells_of(mask, kind, 64) >= 1
    if kind == "whole" and min(mask.shape) == max(mask.shape):
        assert len(places) == 1


def test_few_views_cover_a_strip() -> None:
    mask = np.zeros((64, 640), np.uint8)
    mask[30, [5, 60, 70, 120, 400, 440]] = 1
    assert len(places_of(mask, "whole", 64)) == 3
    mask[10, :] = 1  # a scratch all along
    assert len(places_of(mask, "whole", 64)) == 10


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long, tall and square photos, with damage at the ends, in the corners and all along."""
    root = tmp_path_factory.mktemp("plant")
    shapes = {"long": (90, 700), "tall": (400, 100), "square": (300, 300), "scratch": (80, 500)}
    for number, (name, (height, width)) in enumerate(shapes.items()):
        mask = np.zeros((height, width), np.uint8)
        if name == "scratch":
            mask[40:42, 3:-3] = 1
        else:
            mask[2:8, 2:10] = mask[-9:-3, -6:] = mask[height // 2, width // 3:width // 3 + 9] = 1
        save(root / f"image/crack/{name}.png", picture(number, (width, height)))
        save(root / f"mask/crack/{name}_mask.png", mask)
        save(root / f"image/good/{name}.png", picture(10 + number, (width, height)))
    return root


@pytest.mark.parametrize("view", ["whole", "close", "mixed"])
def test_all_damage_is_in_some_view_within_a_few_epochs(view: str, plant: Path) -> None:
    """Counted in pixels: 0 are lost. And each example of a damaged photo shows damage after augmentation."""
    dataset = load(plant, view)
    for index, item in enumerate(dataset.items):
        region = dataset.decoded(index)[1]
        if region is None or not region.any():
            continue
        places = max(len(places_of(region, kind, 64)) for kind in ("whole", "close"))
        epochs = (1 + (view == "mixed")) * places
        lost = region.copy()
        for epoch in range(epochs):
            top, left, side = dataset.window(index, epoch)
            assert 0 <= top <= region.shape[0] - side and 0 <= left <= region.shape[1] - side
            assert region[top:top + side, left:left + side].any(), item.image
            lost[top:top + side, left:left + side] = 0
            assert dataset.example(index, epoch)["mask"].any()
        assert epochs <= 16 and not lost.any()


def test_a_view_is_a_function_of_seed_epoch_and_item(plant: Path) -> None:
    first, second = (load(plant, "mixed") for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(len(first))]
    forward = {key: first[key] for key in keys}
    for key in reversed(keys):
        assert all(torch.equal(torch.as_tensor(second[key][name]), torch.as_tensor(value))
                   for name, value in forward[key].items())
    assert load(plant, "close", seed=1).window(0, 0) != load(plant, "close").window(0, 0)
    assert load(plant, "whole", augment=False).varies


def test_undamaged_photos_are_seen_at_the_same_scales(tmp_path: Path) -> None:
    """And on their object: a disc at one side of the photo."""
    part = make_product(tmp_path / "part", ("crack", "good"), count=4)
    y, x = np.ogrid[:256, :256]
    disc = (y - 128) ** 2 + (x - 60) ** 2 < 40**2
    for file in (part / "image").rglob("*.png"):
        save(file, np.where(disc[..., None], picture(1, (256, 256)) // 2, 250).astype(np.uint8))
    for file in (part / "mask").rglob("*.png"):
        mask = np.zeros((256, 256), np.uint8)
        mask[110:122, 60:72] = 1
        save(file, mask)
    dataset = load(part, "close")
    sides: dict[str, list[int]] = {"crack": [], "good": []}
    for index, item in enumerate(dataset.items):
        for epoch in range(20):
            top, left, side = dataset.window(index, epoch)
            sides[item.damage].append(side)
            assert disc[top:top + side, left:left + side].any()
    assert min(map(min, sides.values())) >= 32 and max(map(max, sides.values())) <= 48
    assert abs(np.median(sides["crack"]) - np.median(sides["good"])) <= 3


def test_square_photos_stay_bit_for_bit_as_they_were(tmp_path: Path) -> None:
    """The example as it was before there were views: the whole square, moved, relit."""
    dataset = load(make_product(tmp_path / "part"), "whole")
    assert dataset.config == DataConfig([str(tmp_path / "part")], resolution=64, load_masks=True)
    for index, item in enumerate(dataset.items):
        for epoch in range(2):
            pixels, region = (prepare(values, (0, 0, 96), 64) if values is not None else None
                              for values in (read_image(item.image), item.region()))
            rng = numpy_rng(42, "augmentation", epoch, index)
            motion = draw_motion(rng, "any", region)
            image = relight(warp(pixels, motion, 64), rng) * 2 - 1
            example = dataset.example(index, epoch)
            assert np.array_equal(example["image"].permute(1, 2, 0), image)
            assert region is None or np.array_equal(example["mask"][0], warp_mask(region, motion, 64))


def test_small_damage_is_seen_large(tmp_path: Path) -> None:
    mask = np.zeros((600, 900), np.uint8)
    mask[300:308, 700:709] = 1
    save(tmp_path / "image/speck/a.png", picture(0, (900, 600)))
    save(tmp_path / "mask/speck/a_mask.png", mask)
    cells = {view: [latent_cells(load(tmp_path, view).example(0, epoch)["mask"][0].numpy())
                    for epoch in range(8)] for view in ("whole", "close")}
    assert max(cells["whole"]) <= 4 and min(cells["close"]) >= 4 and np.median(cells["close"]) >= 6
    [line] = [line for line in load(tmp_path, "whole").warnings() if "--view" in line]
    assert "damage of speck is 0.013 % of the photo (median), 1 latent cells at 64 px" in line
    assert line.endswith("use --view close")
    assert not any("--view" in line for line in load(tmp_path, "close").warnings())


def test_close_views_need_masks(tmp_path: Path) -> None:
    save(tmp_path / "image/speck/a.png", picture(0))
    save(tmp_path / "image/good/a.png", picture(1))
    assert len(load(tmp_path, "whole", load_masks=False)) == 2
    with pytest.raises(UserError, match=r"--view close: .*a\.png has no mask"):
        load(tmp_path, "close", load_masks=False)
    save(tmp_path / "image/speck/b.png", picture(2))
    with pytest.raises(UserError, match=r"^--view close: none of the 2 damaged photos has a mask") as error:
        load(tmp_path, "close", load_masks=False)
    assert str(error.value).endswith("or use --view whole")
    with pytest.raises(UserError, match=r"^masks: none of the 2 .* train_class\.py, which needs none$"):
        load(tmp_path, "whole", load_masks=True)


@pytest.mark.parametrize("view", ["whole", "close", "mixed"])
def test_holes_on_undamaged_photos_lie_in_their_views(view: str, tmp_path: Path) -> None:
    """Damage that is placed on an undamaged photo is in the view of that epoch."""
    for number in range(3):
        mask = np.zeros((100, 300), np.uint8)
        mask[20:30, 60 * number + 30:60 * number + 40] = 255
        for damage in ("crack", "good"):
            save(tmp_path / f"image/{damage}/{number}.png", picture(5, (300, 100)))
        save(tmp_path / f"mask/crack/{number}_mask.png", mask)
    dataset = load_holes(DataConfig([str(tmp_path)], resolution=64, load_masks=True, view=view,
                                    augment=False))
    borrowed = 0
    for index in dataset.views.siblings(0, damaged=False):
        for epoch in range(8):
            _, placed = dataset._borrowed(index, epoch)
            assert dataset.example(index, epoch)["hole"].any()
            if placed is not None:
                borrowed += 1
                mask = dataset._moved(*placed, index, epoch)
                assert mask is not None and mask.any()
    assert borrowed


def test_by_class_each_item_shows_its_own_damage(tmp_path: Path) -> None:
    """A photo with two damages far apart is two items."""
    save(tmp_path / "image/a.png", picture(0, (400, 80)))
    save(tmp_path / "mask/a_mask.png", np.hstack([square_mask(1, (80, 80)), np.zeros((80, 240), np.uint8),
                                                  square_mask(2, (80, 80))]))
    dataset = load_dataset(DataConfig([str(tmp_path)], resolution=64, load_masks=True), masks_by_class=True)
    for index in range(2):
        for epoch in range(4):
            mask = dataset.example(index, epoch)["mask"]
            assert mask[index].any() and not mask[1 - index].any()


def test_a_moved_place() -> None:
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    assert moved_place((10, 20, 30, 60), turn, np.array([100.0, 5.0]), (100, 200)) == (25, 70, 65, 90)
    assert moved_place((10, 20, 30, 60), np.eye(2), np.array([500.0, 0.0]), (100, 200)) is None
    assert moved_place((0, 0, 10, 90), 2 * np.eye(2), np.zeros(2), (50, 200)) == (0, 65, 20, 115)


def test_what_turns_into_view_is_the_photos_own() -> None:
    """Augmentation reads no farther than the border that is added, where the photo has it."""
    for seed in range(200):
        corners = np.array([(x, y) for x in (-1, 1) for y in (-1, 1)])
        motion = draw_motion(numpy_rng(seed), "any")
        assert np.abs(corners @ motion[:, :2].T + motion[:, 2]).max() <= 1 + 2 * BORDER
    assert widened((100, 200, 50), (400, 400)) == (94, 194, 62)
    assert widened((3, 200, 50), (400, 400)) == (0, 197, 56) and widened((0, 0, 90), (90, 90)) == (0, 0, 90)
