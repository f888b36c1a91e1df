"""A folder of generated images, laid out as the dataset, MVTec AD or COCO, and its journal samples.jsonl."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import processes
from coco import Annotated, coco_dataset
from decode import read_mask, size_of
from errors import UserError
from files import append_row, cut_back, read_rows, remove_leftovers, save_image, save_rows, sync
from folders import is_good
from locks import locked

# layout -> folder of the images, folder of the masks
LAYOUTS = {"ds": ("image", "mask"), "mvtec": ("test", "ground_truth"), "coco": ("image", "mask")}


class Sample(NamedTuple):
    """What was drawn: the picture, where its damage is, (H,W) in {0,1}, and what is noted of both."""

    image: Image.Image
    mask: np.ndarray | None = None
    about: dict[str, Any] = {}


class SampleFolder:
    """Where the images go, and samples.jsonl, one row an image.

    The row is written first, then the mask, then the image, each whole or not at all. So an image with a row
    is done, a row without an image is still to draw, and an image without a row was made by someone else.
    settings: what all images of the folder have in common; `layout` is one of LAYOUTS.
    """

    def __init__(self, folder: Path, classes: list[str], settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.journal = folder, settings, folder / "samples.jsonl"
        self.classes = classes
        self.mask_values = mask_values(classes, settings["layout"])
        self.noted: set[str] = set()  # the images that have a row

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """While the block runs, the folder is this command's.

        Raises UserError where another process has it, or its images were drawn with other settings.
        """
        with locked(self.folder) if processes.first() else contextlib.nullcontext():
            if processes.first():
                remove_leftovers(self.folder)
                cut_back(self.journal)
                self._read()
            processes.wait()
            if not processes.first():
                self._read()
            yield

    def _read(self) -> None:
        rows = read_rows(self.journal)
        for row in rows:
            changed = [f"{key} was {row.get(key)}, is {value}" for key, value in self.settings.items()
                       if row.get(key) != value]
            if changed:
                raise UserError(f"{self.journal}: these images were drawn with other settings "
                                f"({'; '.join(changed)}); give those, or another --out")
        self.noted = {str(row.get("file")) for row in rows}

    def file(self, damage: str, number: int) -> Path:
        """The image's place; product/damage becomes <product>/image/<damage>."""
        return self._place(0, damage) / f"{number:03d}.png"

    def mask_file(self, damage: str, number: int) -> Path:
        """The place of the image's mask."""
        return self._place(1, damage) / f"{number:03d}_mask.png"

    @property
    def grid(self) -> Path:
        """The contact sheet's place."""
        return sheet_of(self.folder, self.settings["layout"])

    def _place(self, part: int, damage: str) -> Path:
        *product, damage = damage.split("/")
        return self.folder.joinpath(*product, LAYOUTS[self.settings["layout"]][part], damage)

    def missing(self, classes: list[str], per_class: int) -> list[tuple[str, int]]:
        """The (class, number) pairs still to draw. Raises UserError where a foreign file is in the way."""
        pairs = [(damage, number) for damage in classes for number in range(per_class)]
        files = [self.file(*pair) for pair in pairs]
        foreign = [file for file in files if file.exists() and self._name(file) not in self.noted]
        if self.grid.exists() and not self.journal.exists():
            foreign = [self.grid, *foreign]
        if foreign:
            raise UserError(f"{foreign[0]}: exists and was not drawn by this command; give another --out")
        return [pair for pair in pairs if not self.file(*pair).exists()]

    def add(self, sample: Sample, damage: str, number: int) -> None:
        """Write one image's row, then its mask if it has one, then the image."""
        file = self.file(damage, number)
        if self._name(file) not in self.noted:
            append_row(self.journal, {"file": self._name(file), "class": damage, "number": number,
                                      **self.settings, **sample.about})
            sync(self.journal)
            self.noted.add(self._name(file))
        if sample.mask is not None:
            values = sample.mask.astype(np.uint8) * self.mask_values[damage]
            save_image(self.mask_file(damage, number), Image.fromarray(values))
        save_image(file, sample.image)

    def annotate(self) -> None:
        """annotations.json of every image there, in COCO's layout; in the others nothing."""
        if self.settings["layout"] != "coco":
            return
        pictures = []
        for row in read_rows(self.journal):
            damage, number = row.get("class"), row.get("number")
            if damage in self.classes and isinstance(number, int) and self.file(damage, number).exists():
                file, mask = self.file(damage, number), self.mask_file(damage, number)
                pictures.append(Annotated(self._name(file), size_of(file), damage,
                                          read_mask(mask) if mask.exists() else None))
        save_rows(self.folder / "annotations.json", [coco_dataset(pictures)])

    def _name(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()


def sheet_of(folder: Path, layout: str) -> Path:
    """A folder's contact sheet: in MVTec AD's layout beside it, for there every picture in it counts."""
    if layout == "mvtec":
        return folder.resolve().with_name(f"{folder.resolve().name}-grid.png")
    return folder / "grid.png"


def cut(classes: list[str], per_class: int, batch_size: int,
        wanted: list[tuple[str, int]]) -> list[list[tuple[str, int]]]:
    """The batches that hold wanted (class, number) pairs, of all pairs cut into batches.

    In batches of another size drawing is rounded otherwise. So a command that was stopped amid a batch draws
    that batch whole once more, and ends with the files it would have ended with.
    """
    pairs = [(damage, number) for damage in classes for number in range(per_class)]
    batches = [pairs[i:i + batch_size] for i in range(0, len(pairs), batch_size)]
    return [batch for batch in batches if not set(wanted).isdisjoint(batch)]


def mask_values(classes: list[str], layout: str) -> dict[str, int]:
    """Each class's value in masks: 255 in MVTec AD's layout, else 1, 2, .. within its product."""
    values: dict[str, int] = {}
    for name in classes:
        product = name.rpartition("/")[0]
        if not is_good(name):
            siblings = sum(other.rpartition("/")[0] == product for other in values)
            values[name] = 255 if layout == "mvtec" else siblings + 1
    return values
