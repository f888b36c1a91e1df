"""Other layouts, masks in other places, and what lies in the folders but is not used: counted and named."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from bases import Outcome, command
from PIL import Image
from trees import make_product, picture, save, square_mask

import data
from data import DataConfig, DefectDataset, load_dataset
from dataset.classes import group_by_class
from evaluation.image_sets import load_photos
from runtime.errors import UserError
from sampling.mask_bank import MaskFiles, open_masks
from sampling.opening import find_photos


def load(*folders: Path, **options: object) -> DefectDataset:
    names = [str(folder) for folder in folders]
    return load_dataset(DataConfig(names, resolution=192, augment=False, **options))


def doctor(folder: Path, tmp_path: Path) -> Outcome:
    return command(data.main, "doctor", folder, "--resolution", 64, "--out", tmp_path / "sheet.png")


def regions(dataset: DefectDataset) -> dict[str, int]:
    """Pixels of damage, of a photo of 96 x 96, by class/folder/file."""
    return {f"{dataset.classes[item.class_id]}/{item.image.parent.parent.name}/{item.image.name}":
            int(dataset.example(index, 0)["mask"].sum()) // 4 for index, item in enumerate(dataset.items)}


# --- layouts ---

def mvtec(root: Path) -> Path:
    for number in range(2):
        for index, folder in enumerate(("train/good", "test/good", "test/crack")):
            save(root / folder / f"{number:03}.png", picture(10 * index + number))
        save(root / f"ground_truth/crack/{number:03}_mask.png", square_mask(255))
    (root / "license.txt").write_text("x")
    return root


def test_mvtecs_tree(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "bottle")
    dataset = load(root, load_masks=True)
    assert dataset.summary() == "6 images: crack 2, good 4" and dataset.warnings() == []
    assert regions(dataset)["crack/test/001.png"] == 16**2 and regions(dataset)["good/train/001.png"] == 0
    found = doctor(root, tmp_path)
    assert found.status == 0 and "bottle/good: 4 images" in found.out
    mvtec(tmp_path / "cable")
    assert load(tmp_path).classes == ["bottle/crack", "bottle/good", "cable/crack", "cable/good"]


def test_files_of_several_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pages of a TIFF and the frames of an animation are not training images: that is said."""
    root = make_product(tmp_path / "part")
    pages = {"save_all": True, "append_images": [Image.fromarray(picture(1))]}
    for name in ("image/good/100.tif", "image/good/101.webp", "image/good/102.png"):
        Image.fromarray(picture(0)).save(root / name, **pages)
    dent, blank = (Image.fromarray(square_mask(value)) for value in (2, 0))
    dent.save(root / "mask/dent/000_mask.png", save_all=True, append_images=[blank])
    found = doctor(root, tmp_path)
    assert found.status == 1
    assert ("image/good: of files with several images only the first is read: 3 (100.tif, 101.webp, 102.png)"
            in found.out)
    assert "mask/dent: of files with several images only the first is read: 1 (000_mask.png)" in found.out
    assert all("several images" in line for line in load(root).notes)
    find_photos(str(root / "image/good"))
    assert "image/good: of files with several images only the first is read: 3" in capsys.readouterr().err


def test_photos_that_exif_turns_and_masks_that_it_does_not(tmp_path: Path) -> None:
    """Sizes alike, so only a person can tell whether the masks were drawn on what is displayed."""
    root, exif = make_product(tmp_path / "part"), Image.Exif()
    exif[0x0112] = 3
    for number in range(2):
        image, mask = root / f"image/dent/{number:03}.png", root / f"mask/dent/{number:03}_mask.png"
        for file in (image, mask)[:number + 1]:
            Image.open(file).save(file, exif=exif)
    found = doctor(root, tmp_path)
    assert found.status == 0 and "image/dent: EXIF turns photos and their masks differently" in found.out
    assert "as they are displayed: 1 (000.png)" in found.out


def test_locos_folder_of_masks(tmp_path: Path) -> None:
    root = tmp_path / "box"
    for number in range(2):
        save(root / f"train/good/{number:03}.png", picture(number))
        save(root / f"validation/good/{number:03}.png", picture(10 + number))
        save(root / f"test/logical_anomalies/{number:03}.png", picture(20 + number))
        for part in range(2):
            mask = np.zeros((96, 96), np.uint8)
            mask[10:20, 10 + 40 * part:20 + 40 * part] = 255 - part
            save(root / f"ground_truth/logical_anomalies/{number:03}/{part:03}.png", mask)
    dataset = load(root, load_masks=True)
    assert dataset.summary() == "6 images: good 4, logical_anomalies 2"
    assert regions(dataset)["logical_anomalies/test/000.png"] == 200
    assert doctor(root, tmp_path).status == 0


def test_a_mask_folder_of_the_other_layout_is_named(tmp_path: Path) -> None:
    root = mvtec(tmp_path / "bottle")
    (root / "ground_truth").rename(root / "mask")
    [line] = load(root).warnings()
    assert "folders that its layout does not name are not used: 1 (mask)" in line


def test_evaluation_reads_mvtecs_tree_and_names_what_it_does_not_use(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = mvtec(tmp_path / "bottle")
    (root / "test/crack/gone.png").symlink_to("nowhere.png")
    found = group_by_class(load_photos([str(root)], skip=False))
    assert {name: len(photos) for name, photos in found.items()} == {"good": 4, "crack": 2}
    assert all(photo.region().sum() == 16**2 for photo in found["crack"])
    assert "crack: broken links are not used: 1 (gone.png)" in capsys.readouterr().err


# --- names ---

@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_one_name_in_two_unicode_forms(forms: tuple[str, str], tmp_path: Path) -> None:
    images, masks = (unicodedata.normalize(form, "Kratzer_grün") for form in forms)
    for number in range(2):
        name = unicodedata.normalize(forms[1 - number], f"ä{number}")
        save(tmp_path / "image" / images / f"{name}.png", picture(number))
        save(tmp_path / "mask" / masks / f"ä{number}_mask.png", square_mask(1))
    save(tmp_path / "image" / masks / "2.png", picture(2))
    save(tmp_path / "mask" / images / "2.png", square_mask(1))
    dataset = load(tmp_path, load_masks=True)
    assert dataset.summary() == "3 images: Kratzer_grün 3" and list(regions(dataset).values()) == [16**2] * 3
    assert doctor(tmp_path, tmp_path).status == 0


# --- what is not used ---

def test_photos_that_would_vanish_are_counted_and_named(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", ("crack", "good"))
    for number in range(5):
        (part / f"image/good/gone{number}.png").symlink_to("nowhere.png")
    save(part / "image/crack/batch2/000.png", picture(50))
    save(part / "image/crack/new.webp", picture(51))
    save(part / "mask/crack/new_mask.webp", square_mask(1))
    (part / "image/crack/raw.dng").write_text("x")
    dataset, found = load(part), doctor(part, tmp_path)
    assert len(dataset) == 7
    lost = ["good: broken links are not used: 5 (gone0.png, gone1.png, gone2.png, ..)",
            "crack: subfolders are not used: 1 (batch2)"]
    for text in lost:
        assert sum(text in line for line in dataset.warnings()) == 1
        assert found.out.count(f"problem: {part}/image/{text}") == 1
    assert f"note: {part}/image/crack: other files are not used: 1 (raw.dng)" in found.out
    assert found.status == 1


def test_a_product_without_image_folder_is_named(tmp_path: Path) -> None:
    make_product(tmp_path / "DS-X/bottle", ("crack",))
    make_product(tmp_path / "DS-X/cable", ("crack",)).joinpath("image").rename(tmp_path / "DS-X/cable/images")
    [line] = load(tmp_path / "DS-X").warnings()
    assert "cable: not used" in line
    assert load(tmp_path / "DS-X/bottle").warnings() == []


@pytest.mark.parametrize("name", ["000.png", "000_mask.png"])
@pytest.mark.parametrize("flat", [False, True])
def test_masks_beside_photos_are_no_photos(name: str, flat: bool, tmp_path: Path) -> None:
    folder = tmp_path / "image" if flat else tmp_path / "image/spot"
    save(folder / "000.jpg", picture(0))
    save(folder / name, square_mask(255))
    dataset = load(tmp_path, load_masks=True)
    assert len(dataset) == 1 and dataset.items[0].image.suffix == ".jpg"
    assert list(regions(dataset).values()) == [16**2]
    [line] = dataset.warnings()
    assert f"masks beside their photos are read as masks: 1 ({name})" in line
    assert doctor(tmp_path, tmp_path).status == 0


def test_masks_of_another_ending_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "part/image/crack"
    save(folder / "000.png", picture(1))
    save(folder / "000_gt.png", square_mask(255))
    save(folder / "000_red.png", picture(2))  # a photo all the same
    with pytest.raises(UserError, match="000_gt.png: looks like a mask of 000; call it 000_mask.png"):
        load(tmp_path / "part")
    (folder / "000_gt.png").rename(folder / "000_mask.png")
    assert load(tmp_path / "part").summary() == "2 images: crack 2"


def test_two_photos_of_one_name_stay_photos(tmp_path: Path) -> None:
    for suffix in ("png", "jpg"):
        save(tmp_path / f"image/spot/0.{suffix}", picture(0))
    assert len(load(tmp_path)) == 2


def litter(folder: Path) -> None:
    for each in [folder, *(entry for entry in folder.rglob("*") if entry.is_dir())]:
        for file in list(each.glob("*.png")):
            (each / f"._{file.name}").write_bytes(b"\0\5\x16\7")
        (each / "Thumbs.db").write_bytes(b"x")


def test_litter_is_ignored_by_all_readers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = make_product(tmp_path / "part", ("crack", "good"))
    litter(part)
    assert len(load(part, load_masks=True)) == 6 and load(part).warnings() == []
    assert doctor(part, tmp_path).status == 0
    masks = open_masks(str(part / "mask"), None, ["crack"], 0)
    assert isinstance(masks, MaskFiles) and len(masks.files()) == 3
    assert len(find_photos(str(part / "image/good"))) == 3 and capsys.readouterr().err == ""


# --- what training would not see, or would see wrongly ---

def long_photo(folder: Path, name: str, *columns: int, mask: bool = True) -> None:
    """A strip of 512 x 128 with damage at these columns."""
    image, damage = picture(len(name), (512, 128)), np.zeros((128, 512), np.uint8)
    for column in columns:
        damage[50:70, column:column + 30] = 255
    save(folder / "image/crack" / name, image)
    if mask:
        save(folder / "mask/crack" / name, damage)


def named(dataset: DefectDataset, found: Outcome, text: str) -> bool:
    """Whether trainers and doctor both say it, each once, and the doctor counts it as a problem."""
    problems = [line for line in found.out.splitlines() if line.startswith("problem: ")]
    return found.status == 1 and all(sum(text in line for line in lines) == 1
                                     for lines in (dataset.warnings(), problems))


def test_no_damage_of_a_long_photo_is_cut_away(tmp_path: Path) -> None:
    for number, columns in enumerate([(470,), (10, 470), (10, 440, 470)]):
        long_photo(tmp_path, "abc"[number] * (number + 1) + ".png", *columns)
    dataset, found = load(tmp_path, load_masks=True), doctor(tmp_path, tmp_path)
    assert found.status == 0 and not any("outside" in line for line in dataset.warnings())
    assert all(dataset.example(index, epoch)["mask"].any() for index in range(3) for epoch in range(3))


def test_a_long_photo_without_mask_is_named(tmp_path: Path) -> None:
    long_photo(tmp_path, "a.png", 470, mask=False)
    save(tmp_path / "image/crack/b.png", picture(8, (120, 96)))
    save(tmp_path / "image/good/c.png", picture(9, (512, 128)))
    dataset, found = load(tmp_path), doctor(tmp_path, tmp_path)
    assert named(dataset, found, "a.png: no mask tells where its damage is, and a view, which is square, "
                 "shows 25% of the photo")
    assert len(dataset.warnings()) == 1


def test_inverted_masks_are_named(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", ("crack", "dent", "good"))
    for file in (part / "mask/dent").iterdir():
        save(file, 255 - square_mask(255))
    dataset, found = load(part), doctor(part, tmp_path)
    assert named(dataset, found, "part/dent: in 3 of 3 masks most of the photo is damage")
    assert len(dataset.warnings()) == 1 and found.out.count("inverted?") == 1


def test_many_findings_are_cut_short_for_trainers(tmp_path: Path) -> None:
    for number in range(9):
        long_photo(tmp_path, f"{number}.png", mask=False)
    lines = load(tmp_path).warnings()
    assert len(lines) == 6 and lines[-1].startswith("and 4 more lines")
    assert doctor(tmp_path, tmp_path).out.count("no mask tells where") == 9


def jig(folder: Path, number: int, scratch: int | None, level: int = 235) -> Path:
    """One part, always the same, with a little noise, and maybe a scratch of 4 x 40 pixels."""
    image = np.asarray(Image.fromarray(picture(1, (64, 64))).resize((256, 256))).astype(float) / 2
    image = image + np.random.default_rng(number).normal(0, 2, image.shape)
    if scratch is not None:
        image[scratch:scratch + 4, 100:140] = level
    return save(folder / f"{number}.png", image.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("masks", [True, False])
def test_a_part_in_a_jig_is_no_duplicate_of_its_scratched_like(masks: bool, tmp_path: Path) -> None:
    for number in range(4):
        jig(tmp_path / "image/good", 10 + number, None)
        jig(tmp_path / "image/scratch", number, 60 + 30 * number)
        if masks:
            mask = np.zeros((256, 256), np.uint8)
            mask[60 + 30 * number:64 + 30 * number, 100:140] = 1
            save(tmp_path / f"mask/scratch/{number}_mask.png", mask)
    problems = [line for line in doctor(tmp_path, tmp_path).out.splitlines() if line.startswith("problem: ")]
    assert not any("scratch" in line for line in problems)


def test_faint_damage_counts_where_the_mask_is(tmp_path: Path) -> None:
    """Ten levels on a large spot: nowhere sharp, yet all of it inside the mask."""
    mask = np.zeros((96, 96), np.uint8)
    mask[20:50, 20:50] = 1
    good = picture(1) // 2 + 60
    save(tmp_path / "image/good/0.png", good)
    save(tmp_path / "image/stain/0.png", good - 10 * mask[..., None])
    save(tmp_path / "mask/stain/0_mask.png", mask)
    assert doctor(tmp_path, tmp_path).status == 0


def test_a_photo_saved_again_is_a_duplicate(tmp_path: Path) -> None:
    first = jig(tmp_path / "image/scratch", 0, 100)
    for quality in (60, 90):
        Image.open(first).save(tmp_path / f"image/scratch/again{quality}.jpg", quality=quality)
    Image.open(first).save(tmp_path / "image/scratch/copy.png", optimize=True)
    found = doctor(tmp_path, tmp_path)
    assert found.out.count("nearly the same image as") == 2 and found.out.count(": the same image as") == 1


def test_a_second_mask_is_refused_with_the_way_out(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", ("crack",))
    save(part / "mask/crack/001.png", square_mask(1))
    with pytest.raises(UserError, match=r"001_mask\.png: a second mask, .* folder 001/, whose masks"):
        load(part)
