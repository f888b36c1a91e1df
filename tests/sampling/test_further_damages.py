"""--damages-per-image: several damages in one photo, each in its place, with a mask of class indices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bases import Outcome, Place, command, rows
from PIL import Image
from runs import DAMAGES, paint
from scipy.ndimage import distance_transform_edt
from trees import save

import evaluate
import sample
from data import DataConfig, load_dataset
from dataset.masks import MARGIN
from tiny.bottles import draw_bottle

TWO = ("--damages-per-image", 2, 2)


def opened(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def pair(row: dict, out: str = "generated") -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask."""
    mask = Path(out, "mask", row["class"], f"{row['number']:03d}_mask.png")
    return opened(Path(out, row["file"])), opened(mask)


def test_each_damage_stands_in_mask_and_journal(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--out", "single").status == 0
    outcome = paint(inpaint_run, photos, *TWO)
    assert outcome.status == 0, outcome
    noted, single = rows(Path("generated/samples.jsonl")), rows(Path("single/samples.jsonl"))
    assert len(noted) == 12
    several = [row for row in noted if "further" in row]
    assert len(several) >= 6 and all(row["class"] != "good" for row in several)
    assert len({row["further"][0]["class"] for row in several}) > 1
    assert (f"{9 - len(several)} images have fewer than 2 damages" in outcome.err) == (len(several) < 9)
    for row, one in zip(noted, single, strict=True):
        assert {**row, "further": 0, "damages_per_image": 0, "inputs": 0} == {
            **one, "further": 0, "damages_per_image": 0, "inputs": 0}  # the first damage is the same
        if row not in several:
            continue
        second, = row["further"]
        (image, mask), (before, first) = pair(row), pair(one, "single")
        values = {DAMAGES.index(name) + 1 for name in (row["class"], second["class"])}
        assert set(np.unique(mask)) == {0} | values and "photo" not in second
        own = (mask > 0) & (first == 0)
        assert (mask[first > 0] == first[first > 0]).all() and own.any()
        beyond = distance_transform_edt(~own) >= max(1, MARGIN * second["box"][2])
        assert (image[beyond] == before[beyond]).all() and (image[own] != before[own]).any()
    back = load_dataset(DataConfig(["generated"], resolution=64, load_masks=True, augment=False))
    assert len(back) == 12 and back.classes == [*DAMAGES, "good"]


def test_batches_do_not_matter(inpaint_run: Path, photos: Path) -> None:
    flags = ("--damages-per-image", 1, 3, "--classes", "contamination")
    assert paint(inpaint_run, photos, *flags, "--batch-size", 1, "--per-class", 4).status == 0
    assert paint(inpaint_run, photos, *flags, "--batch-size", 3, "--out", "other").status == 0
    noted = rows(Path("generated/samples.jsonl"))
    assert len({len(row.get("further", [])) for row in noted}) > 1
    for row in noted[:3]:
        (image, mask), (other, same) = pair(row), pair(row, "other")
        assert (mask == same).all() and abs(image.astype(int) - other).max() <= 1


def test_other_layouts(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, *TWO, "--layout", "coco").status == 0
    about = json.loads(Path("generated/annotations.json").read_text())
    names = {each["id"]: each["name"] for each in about["categories"]}
    found: dict[int, set[str]] = {}
    for each in about["annotations"]:
        found.setdefault(each["image_id"], set()).add(names[each["category_id"]])
    noted = {row["file"]: row for row in rows(Path("generated/samples.jsonl"))}
    for image in about["images"]:
        row = noted[image["file_name"]]
        expected = {row["class"], *(each["class"] for each in row.get("further", []))} - {"good"}
        assert found.get(image["id"], set()) == expected
    assert paint(inpaint_run, photos, *TWO, "--layout", "mvtec", "--out", "mvtec").status == 0
    for path in Path("mvtec/ground_truth").glob("*/*.png"):
        assert set(np.unique(opened(path))) == {0, 255}


def test_where_they_would_go_is_shown(inpaint_run: Path, photos: Path) -> None:
    for out, flags in (("one", ()), ("two", TWO)):
        assert paint(inpaint_run, photos, "--placement-only", "--out", out, *flags).status == 0
    assert Path("one-placement.png").read_bytes() != Path("two-placement.png").read_bytes()


def test_deep_grey_photos_keep_their_bits(inpaint_run: Path, tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    grey = draw_bottle("good", 52, 96)[0][..., 1].astype(np.uint16) * 257
    save(tmp_path / "deep/a.png", grey)
    outcome = paint(inpaint_run, tmp_path / "deep", *TWO, "--classes", "contamination", "--per-class", 2)
    assert outcome.status == 0, outcome
    several = [row for row in rows(Path("generated/samples.jsonl")) if "further" in row]
    assert several
    for row in several:
        image, mask = pair(row)
        assert image.dtype == np.uint16 or image.dtype == np.int32
        beyond = distance_transform_edt(mask == 0) > 8
        assert (image[beyond] == grey[beyond]).all() and (image[mask > 0] != grey[mask > 0]).any()


def test_the_evaluation_says_so(inpaint_run: Path, photos: Path, place: Place) -> None:
    assert paint(inpaint_run, photos, *TWO).status == 0
    noted = rows(Path("generated/samples.jsonl"))
    count = sum(each["class"] != row["class"] for row in noted for each in row.get("further", []))
    outcome = command(evaluate.main, "--real", place.data, "--fake", "generated", "--out", "out",
                      "--features", "efficientnet_lite0", "--judge", "efficientnet_lite0", "--folds", 2,
                      "--bootstrap", 10)
    assert outcome.status == 0 and count > 0
    assert f"{count} of 12 generated images hold damage of several types" in outcome.out


def refused(run: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, "--steps", 2, *arguments)


def test_what_is_refused(inpaint_run: Path, undisturbed: Path, photos: Path, place: Place) -> None:
    for wrong in ((3, 1), (2,), (1, 2, 3)):
        assert paint(inpaint_run, photos, "--damages-per-image", *wrong).failed_with("such as 1 3")
    assert paint(inpaint_run, photos, "--damages-per-image", 0, 1).failed_with("--damages-per-image")
    assert paint(inpaint_run, photos, "--damages-per-image", 1, 300).failed_with("too large", "100")
    masks = place.data / "mask/contamination"
    assert paint(inpaint_run, photos, *TWO, "--masks", masks).failed_with("give --masks a dataset")
    assert paint(inpaint_run, photos, *TWO, "--select", "strict").failed_with("leave out --damages-per-image")
    assert refused(undisturbed / "run", *TWO).failed_with("--damages-per-image", "no use")
    assert not Path("generated").exists()
