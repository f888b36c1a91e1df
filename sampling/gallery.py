"""gallery.html of a sample folder: every image with its mask's outline, the nearest training photo or the
photo that it was painted into, and a box to reject it. One file that needs no server."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from checkpoints.metadata import Header, trained_with
from data import DataConfig, load_dataset
from dataset.augmentation import square_box
from dataset.image_files import read_image
from dataset.mask_files import read_mask
from runtime.errors import UserError
from runtime.files import save_text
from runtime.pictures import small_outline
from runtime.trusted_paths import is_trusted
from sampling.contact_sheet import Shown
from sampling.journal import redraw_of

PAGE = Path(__file__).with_suffix(".html")
SIDE = 160  # of the thumbnails, in pixels
SMALL = 32  # side of the pictures whose distance decides which photo is the nearest
# Numbers of samples.jsonl to sort by.
SCORES = {"probability": "probability of its class", "copy_distance": "distance to photos of its class",
          "real_distance": "the same in features", "nn_score": "how like its patches are to photos'",
          "distance": "distance to the nearest photo",
          "fidelity": "change inside the mask", "change": "strength of the change",
          "iou": "overlap of change and mask",
          "cells": "latent cells of the mask"}


class TrainingPhotos:
    """The photos that a checkpoint was trained on, as far as they are still there, for comparison."""

    def __init__(self, header: Header) -> None:
        self.files: dict[str, list[Path]] = {}
        self._small: dict[Path, np.ndarray] = {}
        try:
            config = trained_with(header, DataConfig)
            if all(is_trusted(name) and Path(name).is_dir() for name in config.data):
                dataset = load_dataset(config, header.resolution)
                for item in dataset.items:
                    self.files.setdefault(dataset.classes[item.class_id], []).append(item.image)
        except UserError:  # the photos have moved: the page says that it cannot show them
            self.files = {}

    def nearest(self, image: np.ndarray, damage: str) -> tuple[Path, float] | None:
        """The training photo of that class that is nearest to an image (H,W,3) in any of 8 orientations.

        The distance is the root mean square difference of pictures of SMALL pixels, in levels of 255.
        """
        files = self.files.get(damage, [])
        if not files:
            return None
        for file in files:
            if file not in self._small:
                self._small[file] = _small(read_image(file))
        photos = np.stack([self._small[file] for file in files])
        small = _small(image)
        turned = np.stack([np.rot90(one, turns) for one in (small, small[:, ::-1]) for turns in range(4)])
        squares = ((photos[:, None] - turned[None]) ** 2).mean((2, 3, 4)).min(1)
        return files[int(squares.argmin())], float(np.sqrt(squares.min()))


def write_gallery(path: Path, shown: list[Shown], photos: TrainingPhotos) -> None:
    """Write the page. Raises UserError for an image that cannot be read, or a full disk."""
    images = [_entry(each, path.parent, photos) for each in tqdm(shown, "gallery", leave=False, disable=None)]
    classes = list(dict.fromkeys(image["class"] for image in images))
    scores = {key: title for key, title in SCORES.items() if any(key in image["scores"] for image in images)}
    painted = any("photo" in each.row for each in shown)
    about = ("Tick what is not good, save rejected.txt, and give it to the command that drew these images: "
             "sample.py .. --reject rejected.txt takes them out and draws others. Beside each image: "
             + ("the photo it was painted into." if painted
                else "the training photo of its type that is nearest to it." if photos.files
                else "nothing, because the training photos are not where they were."))
    data = json.dumps({"about": about, "classes": classes, "scores": scores, "images": images})
    save_text(path, PAGE.read_text("utf-8").replace("DATA", data.replace("<", "\\u003c"), 1))


def _entry(each: Shown, folder: Path, photos: TrainingPhotos) -> dict[str, Any]:
    """What the page knows of one image."""
    image, row = read_image(each.image), each.row
    entry = {"file": each.image.relative_to(folder).as_posix(), "class": row["class"],
             "redraw": redraw_of(row), "picture": _data(_thumbnail(image), "JPEG")}
    if each.mask.exists():
        entry["outline"] = _data(small_outline(read_mask(each.mask), SIDE), "PNG")
    numbers = {key: row[key] for key in SCORES if isinstance(row.get(key), (int, float))}
    nearest = photos.nearest(image, row["class"])
    if nearest:
        numbers["distance"] = round(nearest[1], 1)
    other = Path(row["photo"]) if "photo" in row else nearest[0] if nearest else None
    if other and is_trusted(other) and other.is_file():
        entry |= {"other": _data(_thumbnail(read_image(other)), "JPEG"), "other_name": other.name}
    return entry | {"scores": numbers}


def _thumbnail(image: np.ndarray) -> Image.Image:
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    return small


def _small(image: np.ndarray) -> np.ndarray:
    """(SMALL, SMALL, 3) float32: the square that training sees."""
    top, left, side = square_box(image.shape)
    square = Image.fromarray(image[top:top + side, left:left + side])
    return np.asarray(square.resize((SMALL, SMALL), Image.Resampling.BOX), np.float32)


def _data(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
