"""--layout: what sample.py writes, read by the programs whose layouts these are, where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bases import command, place
from PIL import Image
from test_paint import DAMAGES, paint, photos, run

import sample
from data import DataConfig, load_dataset

__all__ = ["photos", "place", "run"]
NO_ANOMALIB = "anomalib is not installed: pip install -r requirements-extras.txt"


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    """Mask (H,W) bool by damage/number."""
    return {f"{file.parent.name}/{file.stem.removesuffix('_mask')}": np.asarray(Image.open(file)) > 0
            for file in folder.rglob("*_mask.png")}


def test_coco_annotations_say_the_masks(run: Path, photos: Path) -> None:
    assert paint(run, photos, "--layout", "coco", "--classes", *DAMAGES).status == 0
    assert paint(run, photos, "--layout", "coco").status == 0  # good ones are added
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


def test_without_masks_there_are_only_images(run: Path, photos: Path, place: object) -> None:
    """A checkpoint of train_class.py draws no masks."""
    import train_class
    assert command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64, "--out",
                   "c", "--preview-every", 0, "--max-steps", 1, "--latent-variants", 1).status == 0
    assert command(sample.main, "--ckpt", "c", "--steps", 2, "--per-class", 2, "--layout", "coco").status == 0
    about = json.loads(Path("generated/annotations.json").read_text())
    assert len(about["images"]) == 8 and about["annotations"] == []
    assert all(Path("generated", image["file_name"]).is_file() for image in about["images"])


def test_pycocotools_and_torchvision_read_it(run: Path, photos: Path) -> None:
    pytest.importorskip("pycocotools")
    from torchvision.datasets import CocoDetection
    assert paint(run, photos, "--layout", "coco").status == 0
    data, masks = CocoDetection("generated", "generated/annotations.json"), masks_in(Path("generated/mask"))
    assert len(data) == 12
    for index, (image, found) in enumerate(data):
        name = data.coco.imgs[data.ids[index]]["file_name"]
        mask = masks.get(f"{Path(name).parent.name}/{Path(name).stem}")
        union = np.zeros(image.size[::-1], bool)
        for annotation in found:
            union |= data.coco.annToMask(annotation).astype(bool)
        assert (union == (mask if mask is not None and "good" not in name else 0)).all()


def test_mvtecs_layout_holds_no_other_picture(run: Path, photos: Path) -> None:
    """Its readers take every picture in the folder, so the contact sheet lies beside it."""
    Path("generated-grid.png").write_text("someone else's")
    assert paint(run, photos, "--layout", "mvtec").failed_with("generated-grid.png", "another --out")
    Path("generated-grid.png").unlink()
    assert paint(run, photos, "--layout", "mvtec").status == 0 and Path("generated-grid.png").is_file()
    assert {file.relative_to("generated").parts[0] for file in Path("generated").rglob("*.png")} == {
        "test", "ground_truth"}


def test_anomalib_reads_mvtecs_layout(run: Path, photos: Path) -> None:
    """Its MVTec AD dataset counts images and masks, and pairs each with its own."""
    pytest.importorskip("anomalib", reason=NO_ANOMALIB)
    from anomalib.data.datasets.image.mvtecad import make_mvtec_ad_dataset
    assert paint(run, photos, "--layout", "mvtec").status == 0
    samples = make_mvtec_ad_dataset(Path("generated").resolve(), split="test")
    assert len(samples) == 12 and (samples.label_index == 1).sum() == 9
    damaged = samples[samples.label_index == 1]
    assert set(damaged.label) == set(DAMAGES)
    for image, mask in zip(damaged.image_path, damaged.mask_path, strict=True):
        assert Path(mask).name == f"{Path(image).stem}_mask.png"
        assert Path(mask).parent.name == Path(image).parent.name


def test_anomalib_trains_on_the_folder(run: Path, photos: Path) -> None:
    """Its Folder datamodule with our own layout: good images, damaged ones, and their masks."""
    pytest.importorskip("anomalib", reason=NO_ANOMALIB)
    from anomalib.data import Folder
    assert paint(run, photos).status == 0
    module = Folder(name="bottle", root="generated", normal_dir="image/good",
                    abnormal_dir=[f"image/{damage}" for damage in DAMAGES],
                    mask_dir=[f"mask/{damage}" for damage in DAMAGES], num_workers=0)
    module.setup()
    batch = [item for loader in (module.test_dataloader(),) for item in loader.dataset]
    damaged = [item for item in batch if bool(item.gt_label)]
    assert damaged and all(bool(item.gt_mask.any()) for item in damaged)
