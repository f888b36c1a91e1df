"""--layout: what sample.py writes, read by the programs whose layouts these are, where they are installed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from bases import ROOT, command
from PIL import Image
from runs import DAMAGES, paint

import sample
from data import DataConfig, load_dataset

NO_ANOMALIB = "anomalib is not installed: pip install -r requirements-extras.txt"


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    """Mask (H,W) bool by damage/number."""
    return {f"{file.parent.name}/{file.stem.removesuffix('_mask')}": np.asarray(Image.open(file)) > 0
            for file in folder.rglob("*_mask.png")}


def test_coco_annotations_say_the_masks(inpaint_run: Path, photos: Path) -> None:
    assert paint(inpaint_run, photos, "--layout", "coco", "--classes", *DAMAGES).status == 0
    assert paint(inpaint_run, photos, "--layout", "coco").status == 0  # good ones are added
    about = json.loads(Path("generated/annotations.json").read_text())
    assert len(about["images"]) == 12 and {each["name"] for each in about["categories"]} == set(DAMAGES)
    masks = masks_in(Path("generated/mask"))
    union = {name: np.zeros(mask.shape, bool) for name, mask in masks.items()}
    for annotation in about["annotations"]:
        image = about["images"][annotation["image_id"] - 1]
        counts, (height, width) = annotation["segmentation"]["counts"], annotation["segmentation"]["size"]
        assert (width, height) == (image["width"], image["height"])
        damage = about["categories"][annotation["category_id"] - 1]["name"]
        assert damage == image["damage"]
        name = f"{damage}/{Path(image['file_name']).stem}"
        union[name] |= np.repeat(np.arange(len(counts)) % 2, counts).reshape(width, height).T.astype(bool)
    damaged = [name for name in masks if not name.startswith("good")]
    assert len(damaged) == 9 and all((union[name] == masks[name]).all() for name in damaged)
    assert len(load_dataset(DataConfig(["generated"], load_masks=True), 64)) == 12  # and still our own layout


def test_without_masks_there_are_only_images(inpaint_run: Path, photos: Path, place: object) -> None:
    """A checkpoint of train_class.py draws no masks."""
    import train_class
    assert command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64, "--out",
                   "c", "--preview-every", 0, "--max-steps", 1, "--latent-variants", 1).status == 0
    outcome = command(sample.main, "--ckpt", "c", "--steps", 2, "--per-class", 2, "--layout", "coco")
    assert outcome.status == 0 and "--layout coco: this checkpoint draws no masks" in outcome.err
    about = json.loads(Path("generated/annotations.json").read_text())
    assert len(about["images"]) == 8 and about["annotations"] == []
    assert all(Path("generated", image["file_name"]).is_file() for image in about["images"])
    flags = ("--ckpt", "c", "--steps", 2, "--per-class", 1, "--layout", "mvtec", "--out", "m")
    outcome = command(sample.main, *flags)
    assert outcome.status == 0 and "--layout mvtec: this checkpoint draws no masks" in outcome.err


def test_pycocotools_and_torchvision_read_it(inpaint_run: Path, photos: Path) -> None:
    pytest.importorskip("pycocotools")
    from torchvision.datasets import CocoDetection
    assert paint(inpaint_run, photos, "--layout", "coco").status == 0
    data, masks = CocoDetection("generated", "generated/annotations.json"), masks_in(Path("generated/mask"))
    assert len(data) == 12
    for index, (image, found) in enumerate(data):
        name = data.coco.imgs[data.ids[index]]["file_name"]
        mask = masks.get(f"{Path(name).parent.name}/{Path(name).stem}")
        union = np.zeros(image.size[::-1], bool)
        for annotation in found:
            union |= data.coco.annToMask(annotation).astype(bool)
        assert (union == (mask if mask is not None and "good" not in name else 0)).all()


def test_annotations_of_someone_else_stay(inpaint_run: Path, photos: Path) -> None:
    Path("generated").mkdir()
    Path("generated/annotations.json").write_text("{}")
    assert paint(inpaint_run, photos, "--layout", "coco").failed_with("generated/annotations.json", "--out")
    assert Path("generated/annotations.json").read_text() == "{}" and not Path("generated/image").exists()


def python_block(naming: str) -> str:
    """The Python of docs/integrations.md that names a class."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/integrations.md").read_text(), re.S)
    return next(block for block in blocks if naming in block)


def test_the_documented_torchvision_script(inpaint_run: Path, photos: Path) -> None:
    pytest.importorskip("pycocotools")
    assert paint(inpaint_run, photos, "--layout", "coco", "--out", "coco").status == 0
    names: dict = {}
    exec(python_block("CocoDetection"), names)
    assert names["masks"][0].any() and names["masks"][0].shape == names["image"].size[::-1]


def test_the_documented_anomalib_script(inpaint_run: Path, photos: Path) -> None:
    pytest.importorskip("anomalib", reason=NO_ANOMALIB)
    assert paint(inpaint_run, photos, "--out", "painted").status == 0
    assert paint(inpaint_run, photos, "--out", "mvtec", "--layout", "mvtec").status == 0
    shutil.copytree("painted/image/good", "mvtec/train/good")
    names: dict = {}
    exec(python_block("MVTecAD"), names)
    for data in (names["painted"], names["mvtec"]):
        data.setup()
        assert len(data.train_data) and len(data.test_data)


def test_mvtecs_layout_holds_no_other_picture(inpaint_run: Path, photos: Path) -> None:
    """Its readers take every picture in the folder, so the contact sheet lies beside it."""
    Path("generated-grid.png").write_text("someone else's")
    assert paint(inpaint_run, photos, "--layout", "mvtec").failed_with("generated-grid.png", "another --out")
    Path("generated-grid.png").unlink()
    outcome = paint(inpaint_run, photos, "--layout", "mvtec")
    assert outcome.status == 0 and "see generated-grid.png and" in outcome.out
    assert Path("generated-grid.png").is_file()
    assert {file.relative_to("generated").parts[0] for file in Path("generated").rglob("*.png")} == {
        "test", "ground_truth"}


def test_anomalib_reads_mvtecs_layout(inpaint_run: Path, photos: Path) -> None:
    """Its MVTec AD datamodule counts images and masks, and pairs each with its own.

    The photos are the training images that it wants beside them.
    """
    pytest.importorskip("anomalib", reason=NO_ANOMALIB)
    from anomalib.data import MVTecAD
    assert paint(inpaint_run, photos, "--layout", "mvtec").status == 0
    photos.joinpath("b.jpg").unlink()  # it takes .png alone
    shutil.copytree(photos, "generated/train/good")
    module = MVTecAD(root=".", category="generated", num_workers=0)
    module.setup()
    samples, masks = module.test_data.samples, masks_in(Path("generated/ground_truth"))
    assert len(module.train_data) == 2 and len(samples) == 12 and len(masks) == 9
    for item, label, path in zip(module.test_data, samples.label, samples.image_path, strict=True):
        mask = masks.get(f"{label}/{Path(path).stem}")
        assert bool(item.gt_label) == (mask is not None)
        assert (item.gt_mask.numpy().astype(bool) == (False if mask is None else mask)).all()
    assert set(samples.label) == {"good", *DAMAGES}


def test_anomalib_trains_on_the_folder(inpaint_run: Path, photos: Path) -> None:
    """Its Folder datamodule with our own layout: good images, damaged ones, and their masks."""
    pytest.importorskip("anomalib", reason=NO_ANOMALIB)
    from anomalib.data import Folder
    assert paint(inpaint_run, photos).status == 0
    module = Folder(name="bottle", root="generated", normal_dir="image/good",
                    abnormal_dir=[f"image/{damage}" for damage in DAMAGES],
                    mask_dir=[f"mask/{damage}" for damage in DAMAGES], num_workers=0)
    module.setup()
    masks, seen = masks_in(Path("generated/mask")), {}
    for data in (module.train_data, module.val_data, module.test_data):
        for item in data:
            name = f"{Path(item.image_path).parent.name}/{Path(item.image_path).stem}"
            seen[name] = bool(item.gt_label)
            if seen[name]:
                assert (item.gt_mask.numpy().astype(bool) == masks[name]).all()
    assert len(seen) == 12 and sum(seen.values()) == 9
