"""The commands of data.py, as a person runs them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from bases import Outcome, command
from forked_commands import ForkedCommands
from PIL import Image
from trees import make_product, picture, save, spoil, square_mask

import data
from data import DataConfig, load_dataset
from runtime import errors


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: object) -> Outcome:
    return command(data.main, *arguments)


def test_doctor_on_sound_data(tmp_path: Path) -> None:
    make_product(tmp_path / "part")
    result = run("doctor", "part", "--resolution", "64")
    assert result.status == 0 and result.err == ""
    assert "part/dent: 3 images, 96x96, RGB; 3 masks" in result.out
    assert "mask values 2" in result.out
    # 16 of 96 pixels from pixel 32: at 64 px 10.7 pixels from 21.3, which touch cells 2 and 3 each way.
    assert "256 / 256 / 256 px, 2.78% / 2.78% / 2.78%, 4 / 4 / 4 latent cells at 64 px" in result.out
    assert "no problems found" in result.out
    with Image.open(tmp_path / "doctor.png") as sheet:
        assert sheet.width > 3 * 96 and sheet.height > 3 * 96


@pytest.mark.parametrize(("out", "why"), [
    ("part/image/good/000.png", "among"), ("part/mask/sheet.png", "among"), ("", "a folder"),
    ("link/x.png", "among"), (".", "a folder"), ("/", "a folder"), ("part", "a folder")])
def test_doctor_writes_no_picture_among_the_photos(tmp_path: Path, out: str, why: str) -> None:
    make_product(tmp_path / "part")
    (tmp_path / "link").symlink_to(tmp_path / "part/image/good")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert run("doctor", "part", "--out", out).failed_with("--out", why)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(("out", "theirs"), [
    ("notes.txt", "notes.txt"), ("notes", "notes"), ("photo.png", "photo.png"),
    ("look.png", "look-placement.png")])
def test_doctor_replaces_only_its_own_pictures(tmp_path: Path, out: str, theirs: str) -> None:
    make_product(tmp_path / "part")
    save(tmp_path / "photo.png", picture(0))
    (tmp_path / "photo.png").rename(tmp_path / theirs)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert run("doctor", "part", "--out", out).failed_with(theirs)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before
    (tmp_path / theirs).unlink()
    for _ in range(2):
        assert run("doctor", "part", "--out", "look.png").status == 0


def test_doctor_leaves_a_picture_larger_than_pillow_opens(tmp_path: Path) -> None:
    make_product(tmp_path / "part")
    Image.new("1", (24000, 24000)).save(tmp_path / "huge.png")
    assert run("doctor", "part", "--out", "huge.png").failed_with("huge.png", "delete it")


def test_a_folder_inside_of_a_product_is_named_with_its_product(tmp_path: Path) -> None:
    make_product(tmp_path / "part")
    outcome = run("doctor", "part/image/dent")
    assert outcome.failed_with("part/image/dent", f"inside of the product {tmp_path / 'part'}; give that")


def test_doctor_in_json(tmp_path: Path) -> None:
    """The same findings, for programs; nothing else is on stdout."""
    make_product(tmp_path / "part")
    (tmp_path / "part/mask/crack/001_mask.png").unlink()
    result = run("doctor", "part", "--resolution", "64", "--json")
    assert result.status == 1 and result.err == ""
    found = json.loads(result.out)
    assert set(found["classes"]) == {"part/crack", "part/dent", "part/good"}
    assert found["classes"]["part/dent"] == {
        "images": 3, "sizes": {"96x96": 3}, "modes": {"RGB": 3}, "masks": 3, "mask_values": [2],
        "mask_pixels": [256, 256, 256], "mask_share": [1 / 36] * 3, "latent_cells": [4, 4, 4],
        "latent_cells_close": [16, 16, 16], "latent_cells_pad": [4, 4, 4]}
    assert found["classes"]["part/good"]["mask_pixels"] == [] and len(found["smallest"]) == 5
    (problem,) = found["problems"]
    assert "crack/001.png: no mask" in problem and Path(tmp_path, found["sheet"]).is_file()


def test_doctor_lists_every_problem(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", count=6, value=255)
    spoil(part / "image/crack/000.png", 0.6)
    (part / "mask/crack/001_mask.png").unlink()
    (part / "image/crack/002.png").unlink()
    save(part / "mask/crack/003_mask.png", square_mask(0))
    save(part / "mask/crack/004_mask.png", np.full((96, 96), 255, np.uint8))
    save(part / "mask/good/000_mask.png", square_mask(1))
    save(part / "mask/good/001_mask.png", square_mask(0))
    shutil.copy(part / "image/dent/000.png", part / "image/good/005.png")
    Image.open(part / "image/dent/001.png").save(part / "image/dent/002.png", optimize=True)
    Image.open(part / "image/dent/003.png").save(part / "image/dent/resaved.jpg", quality=90)
    save(part / "mask/dent/resaved_mask.png", square_mask(255))
    (part / "image/dent/notes.txt").write_text("x")
    result = run("doctor", part, "--out", tmp_path / "sheet.png", "--resolution", "64")
    assert result.status == 1 and result.err == ""
    problems = [line for line in result.out.splitlines() if line.startswith("problem: ")]
    for expected in ("crack/000.png: cannot be read", "crack/001.png: no mask", "002_mask.png: a mask",
                     "003_mask.png: empty", "004_mask.png: covers 100%", "good/000_mask.png: marks damage",
                     "good/005.png: the same image as", "in another class", "dent/002.png: the same image as",
                     "resaved.jpg: nearly the same image as"):
        assert sum(expected in line for line in problems) == 1, (expected, result.out)
    assert len(problems) == 9
    assert "255: a plain mask" in result.out and "notes.txt" in result.out
    assert (tmp_path / "sheet.png").exists() and not (tmp_path / "doctor.png").exists()


def test_a_missing_folder(tmp_path: Path) -> None:
    result = run("doctor", "gone")
    assert result.status == 2 and result.err.startswith("error: gone: no such folder")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("line", ["", "doctor", "doctor . --resolution 100", "doctor . --resolution x",
                                  "demo", "demo out --per-class 0", "demo out --seed -1", "cure ."])
def test_mistakes_on_the_command_line(line: str, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["data.py", *line.split()])
    with pytest.raises(SystemExit) as stop:
        errors.run(data.main)
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_no_network(forked: ForkedCommands, tmp_path: Path) -> None:
    result = forked.wait(forked.start("data", tmp_path, "doctor", "DS-MVTec/bottle", HF_HOME=str(tmp_path),
                                      HF_ENDPOINT="http://127.0.0.1:9"))
    assert result.status == 2 and result.out == ""
    assert [line.startswith("error: ") for line in result.err.splitlines()] == [False, True]
    assert "fetching it from the hub failed" in result.err


def test_demo_is_sound_data(tmp_path: Path) -> None:
    result = run("demo", "out", "--per-class", "1", "--seed", "5")
    assert result.status == 0 and "broken_large" in result.out
    dataset = load_dataset(DataConfig(data=[str(tmp_path / "out")], load_masks=True), resolution=64)
    assert dataset.classes == ["broken_large", "broken_small", "contamination", "good"] and len(dataset) == 4


def test_masks_are_placed_on_photos_called_Good(tmp_path: Path) -> None:
    assert run("demo", tmp_path / "demo", "--per-class", 2).status == 0
    (tmp_path / "demo/image/good").rename(tmp_path / "demo/image/Good")
    outcome = run("doctor", tmp_path / "demo", "--out", tmp_path / "sheet.png")
    assert "masks that find a place" in outcome.out and (tmp_path / "sheet-placement.png").exists()


def test_doctor_names_damage_of_one_image_and_products_without_good(tmp_path: Path) -> None:
    make_product(tmp_path / "part", damages=("crack", "dent"), count=1)
    result = run("doctor", "part", "--resolution", "64")
    assert result.status == 0
    assert "note: part/crack: a single image" in result.out and "note: part: no good images" in result.out


def test_doctor_says_which_strategies_need_masks_and_what_undamaged_photos_are_called(tmp_path: Path) -> None:
    for damage, names in (("crack", "ab"), ("dent", "cd"), ("OK", "ef")):
        for name in names:
            save(tmp_path / "part" / damage / f"{name}.jpg", picture(ord(name)))
    result = run("doctor", "part", "--resolution", "64")
    assert result.status == 0
    assert "if OK holds them, call it good" in result.out
    assert "note: part: no masks; train_class.py needs none" in result.out


def test_doctor_names_folders_that_other_systems_cannot_hold(tmp_path: Path) -> None:
    make_product(tmp_path / "part", damages=("Dent", "dent", "nul", "a:b", "console", "-x", "good"), count=2)
    result = run("doctor", "part", "--resolution", "64")
    assert result.out.count("Windows has no folders of this name") == 2
    assert "note: part/nul: Windows" in result.out and "note: part/a:b: Windows" in result.out
    assert "note: part/-x: begins with a dash" in result.out
    assert "note: part: Dent and dent differ in upper and lower case alone" in result.out
