"""Folders as people have them: classes without image/, a folder too deep, misspelt names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from bases import Place, command
from trees import make_product, picture, save, square_mask

import data
import sample
import train_class
from data import DataConfig, DefectDataset, load_dataset
from runtime.errors import UserError
from training.config import run_folder


def load(*folders: Path, **options: object) -> DefectDataset:
    names = [str(folder) for folder in folders]
    return load_dataset(DataConfig(names, resolution=192, augment=False, **options))


def plain(root: Path, good: str = "good", masks: str | None = None) -> Path:
    """<damage>/NNN.png, and masks in a folder of their own or beside their photos."""
    for index, damage in enumerate(("crack", good)):
        for number in range(2):
            save(root / damage / f"{number:03}.png", picture(10 * index + number))
            if damage == "crack":
                place = root / masks / damage if masks else root / damage
                save(place / f"{number:03}_mask.png", square_mask(255))
    return root


def pixels(dataset: DefectDataset) -> list[int]:
    return [int(dataset.example(index, 0)["mask"].sum()) // 4 for index in range(len(dataset))]


@pytest.mark.parametrize("masks", [None, "mask", "ground_truth"])
def test_class_folders_alone(masks: str | None, tmp_path: Path) -> None:
    root = plain(tmp_path / "part", masks=masks)
    dataset = load(root, load_masks=True)
    assert dataset.summary() == "4 images: crack 2, good 2" and pixels(dataset) == [256, 256, 0, 0]
    outcome = command(data.main, "doctor", root, "--resolution", 64, "--out", tmp_path / "sheet.png")
    assert outcome.status == 0 and "part/good: 2 images" in outcome.out
    plain(tmp_path / "other")
    assert load(tmp_path).classes == ["other/crack", "other/good", "part/crack", "part/good"]


def test_known_layouts_come_first(tmp_path: Path) -> None:
    make_product(tmp_path / "part", count=1)
    plain(tmp_path / "sorted")
    dataset = load(tmp_path)
    assert dataset.summary() == "3 images: crack 1, dent 1, good 1"
    assert f"{tmp_path / 'sorted'}: not used" in dataset.warnings()[0]


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        plain(tmp_path / "a" / name)
        save(tmp_path / "b" / name / "000.png", picture(0))
    save(tmp_path / "c" / "000.png", picture(0))
    save(tmp_path / "d" / "crack" / "000.png", picture(0))
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"holds photos or masks of all .* {name}/image/<damage>/"):
            load(tmp_path / name)
    for name in ("c", "d"):
        with pytest.raises(UserError, match="no image/ folder in it; expected"):
            load(tmp_path / name)


def test_a_picture_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    save(plain(tmp_path / "part") / "stray.png", picture(5))
    with pytest.raises(UserError, match="stray.png: an image beside the damage folders"):
        load(tmp_path / "part")


def test_one_folder_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_product(tmp_path / "part", count=1)
    assert load(tmp_path / "part/image", load_masks=True).summary() == "3 images: crack 1, dent 1, good 1"
    assert run_folder("", [str(tmp_path / "part/image")], "class") == Path("runs/part-class")
    monkeypatch.chdir(tmp_path / "part/image")
    assert len(load(Path("."), load_masks=True)) == 3


def test_good_in_other_case(tmp_path: Path) -> None:
    root = make_product(tmp_path / "part", count=1)
    (root / "image/good").rename(root / "image/Good")
    dataset = load(root, load_masks=True)
    assert dataset.classes == ["Good", "crack", "dent"] and pixels(dataset)[0] == 0
    assert plain(tmp_path / "plain", good="GOOD") and load(tmp_path / "plain", load_masks=True)


@pytest.mark.parametrize(("flags", "expected"), [
    ({"product_classes": ["PART"]}, ["crack", "dent", "good"]),
    ({"damage_type_to_class_id": ["Dent=0", "GOOD=1", "crack=2"]}, ["dent", "good", "crack"])])
def test_names_in_other_case(flags: dict, expected: list[str], tmp_path: Path) -> None:
    assert load(make_product(tmp_path / "part", count=1), **flags).classes == expected


@pytest.mark.parametrize(("flags", "message"), [
    ({"product_classes": ["prat"]}, "did you mean part"),
    ({"damage_type_to_class_id": ["dnet=0"]}, "did you mean dent")])
def test_misspelt_names(flags: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(make_product(tmp_path / "part", count=1), **flags)


def test_accents_as_one_character_or_as_two(tmp_path: Path) -> None:
    root = make_product(tmp_path / "part", count=1)
    for folder in (root / "image", root / "mask"):
        (folder / "dent").rename(folder / "f\u00ealure")
    dataset = load(root, damage_type_to_class_id=["fe\u0302lure=0", "good=1", "crack=2"])
    assert dataset.classes == ["f\u00ealure", "good", "crack"]


def test_misspelt_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_product(tmp_path / "DS-MVTec" / "bottle", count=1)
    monkeypatch.chdir(tmp_path)
    for name in ("DS-MVTec/botle", "./DS-MVTec/botle"):  # the first could be on the hub
        with pytest.raises(UserError, match="no such folder; did you mean .*DS-MVTec/bottle"):
            load(Path(name) if name[0] != "." else tmp_path / name)
    assert command(train_class.main, "DS-MVTec/bottle").failed_with("did you mean --data DS-MVTec/bottle?")


def test_what_sample_writes_is_read_as_it_is(stage_a: Path, place: Place, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layout of sample.py, by a train script; classes are asked for in any case."""
    monkeypatch.chdir(tmp_path)
    for layout in ("ds", "mvtec", "coco"):
        outcome = command(sample.main, "--ckpt", stage_a, "--steps", 1, "--per-class", 1, "--layout", layout,
                          "--out", layout, "--classes", "GOOD", "Broken_Small")
        assert outcome.status == 0, outcome
        assert load(tmp_path / layout).summary() == "2 images: broken_small 1, good 1"
        found = command(train_class.main, "--data", layout, "--base", place.base, "--resolution", 64,
                        "--preview-every", 0, "--max-steps", 1, "--latent-variants", 1,
                        "--out", f"run-{layout}")
        assert found.status == 0, found
    wrong = command(sample.main, "--ckpt", stage_a, "--classes", "broken_smal", "--out", "x")
    assert wrong.failed_with("--classes broken_smal", "did you mean broken_small?")
    assert json.loads(Path("coco/annotations.json").read_text())["images"]
    shutil.rmtree("mvtec/test/good")
    assert load(tmp_path / "mvtec").classes == ["broken_small"]
