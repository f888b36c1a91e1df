"""sample.py on photos of any size: the view that was trained, the photo's own bits and pixels."""

from __future__ import annotations

import dataclasses
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from bases import rows
from PIL import Image
from runs import paint
from scipy.ndimage import distance_transform_edt
from trees import picture, save

from checkpoints.adapter import read_adapter, save_adapter
from dataset.image_files import read_image, read_levels
from dataset.masks import MARGIN
from dataset.paste import box_for, make_view, paste
from dataset.windows import longer_side, places_of


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def trained_close(inpaint_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose header says that it was trained with close views."""
    monkeypatch.chdir(tmp_path)
    tensors, header = read_adapter(inpaint_run / "adapter.safetensors")
    shutil.copytree(inpaint_run, "close")
    save_adapter(Path("close/adapter.safetensors"), tensors,
                 dataclasses.replace(header, config=header.config | {"view": "close"}))
    return Path("close")


def with_spot(folder: str, name: str, size: tuple[int, int], at: tuple[int, int]) -> None:
    """A photo (W,H), and a mask with 12 x 14 pixels at (x,y)."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[at[1]:at[1] + 14, at[0]:at[0] + 12] = 255
    save(Path("photos", folder, f"{name}.png"), picture(len(name), size))
    save(Path("masks", f"{name}.png"), mask)


def test_the_view_is_the_one_that_was_trained(trained_close: Path, inpaint_run: Path) -> None:
    """On photos of mixed sizes and shapes in one folder, at their own size."""
    for name, size, at in (("strip", (700, 66), (650, 30)), ("tall", (90, 400), (10, 3)),
                           ("large", (1500, 1100), (1200, 900)), ("square", (64, 64), (20, 20))):
        with_spot("", name, size, at)
    flags = ("--masks", "masks", "--classes", "contamination", "--per-class", 4)
    for run, out in ((trained_close, "one"), (inpaint_run, "two")):
        assert paint(run, Path("photos"), *flags, "--out", out).status == 0
    close, whole = (rows(Path(out, "samples.jsonl")) for out in ("one", "two"))
    assert {row["view"] for row in close} == {"close"} and {row["view"] for row in whole} == {"whole"}
    for near, far in zip(close, whole, strict=True):
        assert near["photo"] == far["photo"]
        photo, image = opened(near["photo"]), opened(Path("one", near["file"]))
        mask = opened(Path("masks", Path(near["mask"]).name)) > 0
        top, left, side = near["box"]
        assert mask[top:top + side, left:left + side].sum() == mask.sum() == 12 * 14
        assert (opened(f"one/mask/contamination/{near['number']:03}_mask.png") > 0).sum() == mask.sum()
        beyond = distance_transform_edt(~mask) >= max(1, MARGIN * side)
        assert (image[beyond] == photo[beyond]).all() and (image[mask] != photo[mask]).any()
        if "large" in near["photo"]:
            assert side < 100 and far["box"][2] == 1100 - 1100 % 11 and near["cells"] > far["cells"]
    again = paint(trained_close, Path("photos"), *flags, "--out", "one", "--view", "whole")
    assert again.failed_with("view was close, is whole")


def test_rows_of_the_flag_before_it_are_told_apart(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--classes", "good").status == 0
    journal = Path("generated/samples.jsonl")
    before = journal.read_text()
    journal.write_text(before.replace('"view": "whole"', '"crop": false'))
    assert paint(inpaint_run, photos, "--classes", "good").status == 0
    journal.write_text(before.replace('"view": "whole"', '"crop": true'))
    assert paint(inpaint_run, photos, "--classes", "good").failed_with("crop was True")


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_deep_photos_keep_their_bits(bits: int, inpaint_run: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with_spot("", "a", (96, 80), (30, 40))
    levels = np.random.default_rng(0).integers(0, 2**bits, (80, 96))
    levels[0, 0] = 2**bits - 1
    save(Path("photos/a.png"), levels.astype(np.uint8 if bits == 8 else np.uint16))
    outcome = paint(inpaint_run, Path("photos"), "--masks", "masks", "--classes", "good", "contamination",
                    "--per-class", 1)
    assert outcome.status == 0, outcome
    for name in ("good", "contamination"):
        image, mask = opened(f"generated/image/{name}/000.png").astype(int), opened("masks/a.png") > 0
        beyond = distance_transform_edt(~mask) >= 1.25
        assert (image[beyond] == levels[beyond]).all() and (image[mask] != levels[mask]).mean() > 0.9
        assert image[mask].max() < 2**bits and image[mask].max() > 2**(bits - 4)


def test_a_large_photo_is_in_memory_once(tmp_path: Path) -> None:
    """Beside masks and what is near the damage; Pillow's memory is not counted."""
    size = (4000, 3000)
    file, mask = save(tmp_path / "large.png", picture(0, size)), np.zeros(size[::-1], np.uint8)
    mask[2500:2520, 3000:3060] = 1
    tracemalloc.start()
    photo = read_image(file)
    box = box_for(mask, "close", 128, np.random.default_rng(0))
    view = make_view(photo, mask, box, 128, "a mask")
    reading = tracemalloc.get_traced_memory()[1] / photo.nbytes
    del photo
    tracemalloc.reset_peak()
    photo, white = read_levels(file)
    before = photo[2500:2520, 3000:3060].copy()
    result = np.asarray(paste(photo, view, 255 - view.image, white=white).crop((3000, 2500, 3060, 2520)))
    pasting = tracemalloc.get_traced_memory()[1] / photo.nbytes
    tracemalloc.stop()
    assert (result != before).any()
    assert max(reading, pasting) < 2.2  # 1, and a third for each mask and comparison


def test_of_damages_far_apart_a_close_view_paints_one() -> None:
    mask = np.zeros((500, 800), np.uint8)
    mask[10:20, 10:22] = mask[400:412, 700:710] = 1
    places = places_of(mask, "close", 64)
    assert len(places) == 2 and max(map(longer_side, places)) == 12
    boxes = {box_for(mask, "close", 64, np.random.default_rng(seed)) for seed in range(20)}
    assert len(boxes) == 2
    painted = [make_view(np.zeros((500, 800, 3), np.uint8), mask, box, 64, "").mask for box in boxes]
    assert all(each.any() for each in painted) and (painted[0] + painted[1] == mask).all()
    anywhere = {box_for(mask, "close", 64, np.random.default_rng(seed), anywhere=True) for seed in range(20)}
    assert len(anywhere) > 15
