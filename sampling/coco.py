"""Images and masks as a COCO dataset (Lin et al. 2014, arXiv 1405.0312): annotations.json for instances."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import scipy


class Annotated(NamedTuple):
    """An image: its file below the dataset's folder, (width, height), the class that it is filed under, and
    where (H,W) each damage type is."""

    file: str
    size: tuple[int, int]
    damage: str
    regions: dict[str, np.ndarray]


def coco_dataset(pictures: Iterable[Annotated]) -> dict[str, Any]:
    """The content of annotations.json. Each connected region of a damage type is an instance of it."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for picture in pictures:
        images.append({"id": len(images) + 1, "file_name": picture.file, "width": picture.size[0],
                       "height": picture.size[1], "damage": picture.damage})
        for damage, mask in picture.regions.items():
            regions, count = scipy.ndimage.label(mask, structure=np.ones((3, 3)))
            for number, (rows, columns) in enumerate(scipy.ndimage.find_objects(regions, count), 1):
                region = regions == number
                annotations.append({
                    "id": len(annotations) + 1, "image_id": len(images),
                    "category_id": categories.setdefault(damage, len(categories) + 1), "iscrowd": 0,
                    "area": int(region.sum()), "segmentation": {"size": list(region.shape),
                                                                "counts": run_lengths(region)},
                    "bbox": [columns.start, rows.start, columns.stop - columns.start,
                             rows.stop - rows.start]})
    named = [{"id": i, "name": name, "supercategory": "damage"} for name, i in categories.items()]
    return {"info": {"description": "generated defect images"}, "licenses": [], "images": images,
            "annotations": annotations, "categories": named}


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code of a mask (H,W): column by column, runs of 0s and 1s, 0s first."""
    pixels = mask.T.ravel().astype(bool)
    edges = np.flatnonzero(np.diff(pixels)) + 1
    lengths = np.diff([0, *edges, pixels.size]).tolist()
    return [0, *lengths] if pixels[0] else lengths
