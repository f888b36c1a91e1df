"""coco.py: what it writes is read by pycocotools and torchvision, where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from trees import picture, save

from sampling.coco import Annotated, coco_dataset, run_lengths

DAMAGES = ["Kratzer groß", "划痕 & \"b\"", "good"]
MASKS = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@settings(max_examples=200, deadline=None)
@given(MASKS)
def test_run_lengths_say_the_mask(mask: np.ndarray) -> None:
    counts = run_lengths(mask)
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    assert (mask == values.reshape(mask.shape[::-1]).T).all()
    assert min(counts[1:], default=1) > 0


@settings(max_examples=100, deadline=None)
@given(MASKS)
def test_regions_and_boxes(mask: np.ndarray) -> None:
    """The regions together are the mask, none is empty, and each box just holds its region."""
    about = coco_dataset([Annotated("a.png", mask.shape[::-1], "crack", {"crack": mask})])
    total = np.zeros(mask.shape, int)
    for annotation in about["annotations"]:
        counts = annotation["segmentation"]["counts"]
        region = np.repeat(np.arange(len(counts)) % 2, counts).reshape(mask.shape[::-1]).T
        x, y, width, height = annotation["bbox"]
        rows, columns = np.nonzero(region)
        assert (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1) == (x, y, width, height)
        assert annotation["area"] == region.sum() > 0
        total += region
    assert (total == mask).all()


def write_dataset(folder: Path) -> dict[str, np.ndarray]:
    """Three pictures: two regions, one, and none; returns the masks by file."""
    masks = {f"{damage}/0.png": np.zeros((48, 64), bool) for damage in DAMAGES}
    first, second, _ = masks.values()
    first[2:9, 3:20] = first[30:40, 40:60] = second[20:48, 0:5] = True
    pictures = []
    for number, (name, mask) in enumerate(masks.items()):
        save(folder / name, picture(number, (64, 48)))
        pictures.append(Annotated(name, (64, 48), DAMAGES[number], {DAMAGES[number]: mask}))
    (folder / "annotations.json").write_text(json.dumps(coco_dataset(pictures)))
    return masks


def test_pycocotools_reads_the_masks_back(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    masks = write_dataset(tmp_path)
    read = coco.COCO(str(tmp_path / "annotations.json"))
    assert [read.cats[i]["name"] for i in read.getCatIds()] == DAMAGES[:2]
    for image in read.loadImgs(read.getImgIds()):
        found = read.loadAnns(read.getAnnIds(image["id"]))
        union = np.zeros((48, 64), bool)
        for annotation in found:
            union |= read.annToMask(annotation).astype(bool)
        assert (union == masks[image["file_name"]]).all()
    assert len(read.getAnnIds(catIds=[1])) == 2 and len(read.getAnnIds()) == 3


def test_torchvision_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from torchvision.datasets import CocoDetection
    write_dataset(tmp_path)
    data = CocoDetection(str(tmp_path), str(tmp_path / "annotations.json"))
    assert [(image.size, len(target)) for image, target in data] == [((64, 48), count) for count in (2, 1, 0)]
