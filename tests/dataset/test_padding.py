"""--fit pad: all of a long photo is seen, its mirror counts for nothing, and its shape comes out again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Place, command, rows
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import train_control, train_stage_a
from trees import picture, save

import data
import evaluate
import sample
import train_class
import train_inpaint
from data import DataConfig, DefectDataset, load_dataset
from dataset.augmentation import IDENTITY
from dataset.layouts import Photo
from dataset.padding import cut, kept, own_cells, padded
from evaluation.networks import LITE
from training.diffusion import per_image_loss

WIDE, HIGH = (160, 60), (60, 160)


def make_long(root: Path, size: tuple[int, int], count: int = 3) -> Path:
    """Photos of one size, whose damage lies at both ends, where no single square shows it."""
    for index, damage in enumerate(("dent", "good")):
        for number in range(count):
            save(root / "image" / damage / f"{number:03}.png", picture(10 * index + number, size))
            if damage == "dent":
                mask = np.zeros(size[::-1], np.uint8)
                mask[:6, :6] = mask[-6:, -6:] = 255
                save(root / "mask" / damage / f"{number:03}_mask.png", mask)
    return root


def load(folder: Path, **options: object) -> DefectDataset:
    return load_dataset(DataConfig([str(folder)], **{"resolution": 64, "load_masks": True, "fit": "pad",
                                                     **options}))


@given(width=st.integers(20, 300), height=st.integers(20, 300))
@settings(max_examples=40)
def test_the_middle_that_is_kept_holds_the_whole_photo_and_little_more(
        tmp_path_factory: pytest.TempPathFactory, width: int, height: int) -> None:
    file = save(tmp_path_factory.mktemp("one") / "a.png", np.zeros((height, width), np.uint8))
    photo = Photo(file, None, None, "", "dent")
    own, shape = own_cells(photo, IDENTITY, 64), kept([photo], 64)
    assert max(shape) == 64 and not any(side % 16 for side in shape)
    assert cut(own, [side // 8 for side in shape]).sum() == own.sum() > 0
    assert min(shape) < 64 * min(width, height) / max(width, height) + 16
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    square = padded(image)
    top, left = (max(width, height) - height) // 2, (max(width, height) - width) // 2
    assert square.shape == (max(width, height),) * 2 + (3,)
    assert (square[top:top + height, left:left + width] == image).all()
    assert padded(np.ones((height, width), np.uint8)).sum() == width * height


@pytest.mark.parametrize("size", [WIDE, HIGH])
def test_each_epoch_shows_all_of_the_damage(tmp_path: Path, size: tuple[int, int]) -> None:
    padding, cropping = (load(make_long(tmp_path / "long", size), fit=fit) for fit in ("pad", "crop"))
    for epoch in range(20):
        example = padding.example(0, epoch)
        ends = example["mask"][0].nonzero().float()
        assert torch.cdist(ends, ends).max() > 50  # of 64 pixels: both ends of the photo
        assert (torch.nn.functional.max_pool2d(example["mask"], 8) <= example["own"]).all()
        assert example["own"].sum() < 40  # of 64 cells: the rest is mirror
        ends = cropping.example(0, epoch)["mask"][0].nonzero().float()
        assert torch.cdist(ends, ends).max() < 20
    plain = load(tmp_path / "long", augment=False).example(0, 0)
    assert torch.equal(cut(plain["mask"], padding.shape).sum(), plain["mask"].sum())


def test_of_square_photos_nothing_changes(place: Place) -> None:
    padding, cropping = (load(place.data, fit=fit) for fit in ("pad", "crop"))
    assert padding.shape == [64, 64] and cropping.shape == []
    for epoch in range(3):
        one, other = padding.example(4, epoch), cropping.example(4, epoch)
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["mask"], other["mask"])
        assert one["own"].all() and "own" not in other


def test_the_loss_is_that_of_the_photo_alone() -> None:
    eps_hat, eps, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    own = torch.zeros(2, 1, 8, 8)
    own[:, :, 2:6] = 1
    alone = per_image_loss(eps_hat[:, :, 2:6], eps[:, :, 2:6], t)
    torch.testing.assert_close(per_image_loss(eps_hat, eps, t, hole=own, weight=1), alone)
    eps_hat[:, :, :2] = 1e3
    torch.testing.assert_close(per_image_loss(eps_hat, eps, t, hole=own, weight=1), alone)


def test_the_mirror_teaches_nothing(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an own part of nothing there is no gradient, so the weights only decay."""
    monkeypatch.chdir(tmp_path)
    make_long(Path("long"), WIDE)
    monkeypatch.setattr(data, "own_cells", lambda *_: torch.zeros(1, 8, 8))
    run = train_stage_a(Place(place.base, Path("long")), Path("run"), "--fit", "pad")
    steps = [row for row in rows(run / "metrics.jsonl") if "loss" in row]
    assert steps and all(row["loss"] == 0 and row["grad_norm"] == 0 for row in steps)


def test_a_long_photo_from_training_to_the_report(place: Place, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Strategies A and B2, with validation and selection: images and masks have the photo's shape."""
    monkeypatch.chdir(tmp_path)
    long = Place(place.base, make_long(Path("long"), WIDE, count=10))
    networks = ("--features", LITE, "--judge", LITE)
    run = train_stage_a(long, Path("a"), "--fit", "pad", "--preview-every", 1, "--preview-steps", 1,
                        "--max-steps", 5, *networks)
    validated = [row["validation"] for row in rows(run / "metrics.jsonl") if "validation" in row]
    assert validated and validated[0]["fid"] is not None
    with Image.open(next(run.glob("previews/*.png"))) as preview:
        assert preview.height < 100  # two rows of 32 pixels
    wrong = train_control(long, run, "--out", "wrong")
    assert wrong.failed_with("--fit crop: a/adapter.safetensors was trained with --fit pad")
    outcome = train_control(long, run, "--fit", "pad", "--max-steps", 1, "--out", "b")
    assert outcome.status == 0, outcome
    for ckpt, flags in (("a", ("--select", "light", "--tries", 1)), ("b", ("--layout", "coco"))):
        outcome = command(sample.main, "--ckpt", ckpt, "--per-class", 3, "--steps", 1, "--out", f"of-{ckpt}",
                          *flags)
        assert outcome.status == 0, outcome
        for file in Path(f"of-{ckpt}").glob("*/dent/*.png"):
            with Image.open(file) as image:
                assert image.size == (64, 32)
    outcome = command(evaluate.main, "--real", long.data, "--fake", "of-b", "--ckpt", "b", "--base",
                      place.base, "--out", "report", *networks, "--folds", 2, "--bootstrap", 10)
    assert outcome.status == 0 and "(--fit pad)" in outcome.err, outcome
    with Image.open("report/views/image/dent/000.png") as real:
        assert real.size == (64, 64)
    annotated = json.loads(Path("of-b/annotations.json").read_text())
    assert {(image["width"], image["height"]) for image in annotated["images"]} == {(64, 32)}


def test_masks_of_another_shape_are_refused(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                            ) -> None:
    monkeypatch.chdir(tmp_path)
    long = Place(place.base, make_long(Path("long"), WIDE))
    train_stage_a(long, Path("a"), "--fit", "pad")
    assert train_control(long, Path("a"), "--fit", "pad", "--max-steps", 1, "--out", "b").status == 0
    inpaint = command(train_inpaint.main, "--data", "long", "--base", place.base, "--resolution", 64,
                      "--max-steps", 1, "--preview-every", 0, "--latent-variants", 1, "--out", "c")
    assert inpaint.status == 0, inpaint
    outcome = command(sample.main, "--ckpt", "c", "--control", "b", "--images", "long/image/good")
    assert outcome.failed_with("--control b/adapter.safetensors", "at 64 px, with --fit crop")
    save(Path("masks/high.png"), np.pad(np.ones((4, 4), np.uint8), ((0, 156), (0, 56))) * 255)
    outcome = command(sample.main, "--ckpt", "b", "--masks", "masks", "--classes", "dent", "--steps", 1)
    assert outcome.failed_with("masks/high.png", "outside the photo's shape, 64x32"), outcome


def test_what_pad_is_not_for(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_long(Path("long"), WIDE)
    flags = ("--data", "long", "--base", place.base, "--resolution", 64, "--fit", "pad")
    assert command(train_inpaint.main, *flags).failed_with("--fit pad: inpainting paints squares")
    close = command(train_class.main, *flags, "--view", "close")
    assert close.failed_with("--fit pad: shows each photo whole; --view close does not")
    shutil.move(str(save(Path("high.png"), picture(5, HIGH))), "long/image/good/high.png")
    assert command(train_class.main, *flags).failed_with("is wide and", "is high; turn all photos")


def test_the_doctor_says_what_pad_would_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_long(Path("long"), (640, 120))
    outcome = command(data.main, "doctor", "long", "--resolution", 64, "--json")
    cells = json.loads(outcome.out)["classes"]["long/dent"]
    assert cells["latent_cells_pad"][1] == 2 <= cells["latent_cells_close"][1]
    shutil.rmtree("long/mask")
    assert "perhaps none of it; add a mask, or use --fit pad" in command(data.main, "doctor", "long").out
