"""Mistakes in data: each ends in one line and exit status 2, before any training."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from trees import make_product, picture, save, spoil, square_mask

from data import DataConfig, load_dataset
from runtime import cli, errors
from runtime.errors import UserError


def bomb(path: Path) -> None:
    Image.new("1", (20000, 20000)).save(path)


IMAGE, MASK = Path("image/crack/001.png"), Path("mask/crack/001_mask.png")
MISTAKES = {
    "truncated image": (lambda r: spoil(r / IMAGE, 0.6), [], "image/crack/001.png"),
    "no image": (lambda r: (r / IMAGE).write_text("hello"), [], "image/crack/001.png"),
    "empty file": (lambda r: (r / IMAGE).write_bytes(b""), [], "image/crack/001.png"),
    "bomb": (lambda r: bomb(r / IMAGE), [], "million pixels"),
    "floating point": (lambda r: Image.new("F", (96, 96)).save(r / "image/crack/9.tif"), [], "9.tif"),
    "truncated mask": (lambda r: spoil(r / MASK, 0.6), [], "001_mask.png"),
    "mask of another size": (lambda r: save(r / MASK, square_mask(1, (90, 96))), [], "90x96"),
    "mask without image": (lambda r: (r / IMAGE).unlink(), [], "001_mask.png"),
    "mask folder without images": (lambda r: save(r / "mask/odd/0_mask.png", square_mask(1)), [], "mask/odd"),
    "jpeg mask": (lambda r: save(r / "mask/crack/7_mask.jpg", square_mask(1)), [], "7_mask.jpg"),
    "two masks": (lambda r: save(r / "mask/crack/001.png", square_mask(1)), [], "001_mask.png"),
    "two images, one mask": (lambda r: save(r / "image/crack/001.jpg", picture(1)), [], "shares its mask"),
    "image beside folders": (lambda r: save(r / "image/x.png", picture(1)), [], "image/x.png"),
    "empty damage folder": (lambda r: (r / "image/void").mkdir(), [], "image/void"),
    "image without mask": (lambda r: (r / MASK).unlink(), ["--load-masks"], "image/crack/001.png"),
    "empty mask": (lambda r: save(r / MASK, square_mask(0)), ["--load-masks"], "001_mask.png"),
    "resolution": (lambda r: None, ["--resolution", "500"], "448 or 512"),
    "no such source": (lambda r: None, ["--dataset-sources", "DS-X"], "DS-X"),
    "no such product": (lambda r: None, ["--product-classes", "cup"], "cup"),
    "unknown class": (lambda r: None, ["--damage-type-to-class-id", "hole=0"], "hole"),
    "class left out": (lambda r: None, ["--damage-type-to-class-id", "crack=0", "dent=1"], "good"),
    "gap": (lambda r: None, ["--damage-type-to-class-id", "crack=0", "dent=1", "good=3"], "0 to 2"),
    "class twice": (lambda r: None, ["--damage-type-to-class-id", "crack=0", "crack=1"], "twice"),
    "no id": (lambda r: None, ["--damage-type-to-class-id", "crack"], "name=id"),
    "no image folder": (lambda r: shutil.move(r / "image", r / "pictures"), [], "no image/ folder"),
    "empty test folder": (lambda r: (shutil.rmtree(r / "image"), (r / "test").mkdir()), [], "MVTec AD"),
    "empty image folder": (lambda r: (shutil.rmtree(r / "image"), (r / "image").mkdir()), [], "image"),
    "flat without masks": (lambda r: (shutil.rmtree(r / "image"), shutil.rmtree(r / "mask"),
                                      save(r / "image/0.png", picture(0))), [], "sort the images"),
}


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a script does with these arguments: it must end with status 2 and one line, which is returned."""
    def main() -> None:
        load_dataset(cli.parse(DataConfig, "a script", argv=argv)).preload()

    with pytest.raises(SystemExit) as stop:
        errors.run(main)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "Traceback" not in line
    return line


def test_an_empty_mask_is_none_where_none_is_needed(tmp_path: Path) -> None:
    """Of a photo that is not square it would tell the view where the damage is."""
    make_product(tmp_path / "part")
    save(tmp_path / "part" / IMAGE, picture(1, (96, 200)))
    save(tmp_path / "part" / MASK, square_mask(0, (96, 200)))
    config = DataConfig([str(tmp_path / "part")], resolution=64)
    drawn = load_dataset(config)
    empty = [drawn.example(index, 3)["image"] for index in range(len(drawn))]
    (tmp_path / "part" / MASK).unlink()
    without = load_dataset(config)
    assert all(torch.equal(image, without.example(index, 3)["image"]) for index, image in enumerate(empty))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_product(tmp_path / "part")
    spoil_it, flags, expected = MISTAKES[name]
    spoil_it(tmp_path / "part")
    assert expected in fails(["--data", str(tmp_path / "part"), *flags], capsys)


def test_missing_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = make_product(tmp_path / "part")
    assert "no such folder" in fails(["--data", str(tmp_path / "gone")], capsys)
    assert "a file" in fails(["--data", str(part / "image/crack/000.png")], capsys)
    assert "given twice" in fails(["--data", str(part), str(tmp_path / "part" / "..")], capsys)


def test_filters_that_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_product(tmp_path / "DS-A" / "cup")
    make_product(tmp_path / "DS-B" / "jar")
    line = fails(["--data", str(tmp_path), "--dataset-sources", "DS-A", "--product-classes", "jar"], capsys)
    assert "fits both" in line


def test_damaged_while_training(tmp_path: Path) -> None:
    """Sound when it was looked at, then cut short: still one line that names it."""
    dataset = load_dataset(DataConfig(data=[str(make_product(tmp_path))]))
    spoil(tmp_path / IMAGE, 0.6)
    with pytest.raises(UserError, match=r"image/crack/001\.png"):
        dataset.example(1, 0)
