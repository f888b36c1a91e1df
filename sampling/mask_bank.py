"""Where damage goes on a photo: real masks where they look at home, or given mask files as they are.

Each choice is a function of (seed, class, number, attempt) alone and is described for samples.jsonl. Attempt
0 is the first choice; where its mask does not fit the photo, later attempts choose others.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from checkpoints.metadata import Header, trained_with
from data import DataConfig, DefectDataset, Item, load_dataset
from dataset import placement
from dataset.image_files import read_image, size_of
from dataset.layouts import is_good, product_folders
from dataset.mask_files import mask_parts, read_mask, region_of
from dataset.paste import DoesNotFit
from dataset.placement import JITTER, RULE, move
from dataset.scan import Scan, nfc, pair_name, pictures_in
from dataset.views import View, view_of
from runtime import distributed
from runtime.errors import UserError
from runtime.seeds import numpy_rng
from runtime.trusted_paths import followed

TRIES = 20  # pairs of a mask and a photo tried until one fits
PHOTOS = 4  # photos tried for a mask


class Placed(NamedTuple):
    """A mask (H,W) uint8 in {0,1} in its photo's pixels, and its description for samples.jsonl."""

    mask: np.ndarray
    about: dict[str, Any]


def shuffled(count: int, *key: int | str, number: int) -> int:
    """Entry `number` of a sequence of shuffled orders of 0 .. count - 1, in which each occurs once."""
    return int(numpy_rng(*key, number // count).permutation(count)[number % count])


class MaskBank:
    """The real masks of each damage type, re-placed where their surroundings look like those that they had.

    `good` has no masks of its own and takes those of all other classes.
    """

    whole = False  # a mask may be cut at the border of the model's view

    def __init__(self, items: dict[str, list[Item]], seed: int, orientation: str,
                 jitter: float = JITTER) -> None:
        self.items, self.seed, self.orientation, self.jitter = items, seed, orientation, jitter
        self.classes = list(items)
        self._views: dict[tuple[Path, Path | None, int | None], View] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What all placements have in common."""
        return {"placement": RULE, "mask_jitter": self.jitter}

    def files(self, *classes: str) -> list[Path]:
        """The mask files of these classes, by default of all."""
        masks = {item.mask for name in classes or self.classes for item in self.items[name] if item.mask}
        return sorted(part for mask in masks for part in mask_parts(mask))

    def sources(self, name: str) -> list[Path]:
        """The photos of a class's masks, whose objects decide how a mask is moved."""
        return sorted({item.image for item in self.items[name]})

    def attempts(self, damage: str) -> int:
        """How many attempts there are for an image."""
        return TRIES

    def photo_for(self, damage: str, number: int, photos: list[Path], attempt: int = 0) -> Path:
        """The photo for mask `number` of a class: each is used before any is used again, but for those on
        which a mask finds no place."""
        self._view(self._item(damage, number, attempt))  # so that one photo is in memory at a time
        return photos[(shuffled(len(photos), self.seed, "photo", damage, number=number) + attempt)
                      % len(photos)]

    def place(self, damage: str, number: int, photo: np.ndarray | None = None, attempt: int = 0) -> Placed:
        """Mask `number` of a class on a photo (H,W,3), or on one of those that the class's masks are of.

        Raises DoesNotFit, or UserError for a file that cannot be read.
        """
        items, item = self.items[damage], self._item(damage, number, attempt)
        mask = _region(item.mask, item.mask_value)
        layout = items[(shuffled(len(items), self.seed, "layout", damage, number=number) + attempt)
                       % len(items)]
        target = self._view(layout) if photo is None else view_of(photo)
        rng = numpy_rng(self.seed, "placement", damage, number, *([attempt] if attempt else []))
        motion = placement.place(rng, self._view(item), target, self.orientation, self.jitter)
        placed = mask[:0] if motion is None else move(mask, motion, *target.shape)
        if motion is None or not placed.any():
            raise DoesNotFit(f"{item.mask}: no place on a photo looks like the one that it has on its own; "
                             "if this happens often, look with --placement-only, and give more photos of "
                             "this product, or other --masks")
        return Placed(placed, {"mask": str(item.mask), "score": motion.score, "transform": motion.about})

    def _item(self, damage: str, number: int, attempt: int) -> Item:
        """The photo whose mask is placed."""
        items = self.items[damage]
        first = shuffled(len(items), self.seed, "mask", damage, number=number)
        return items[(first + attempt // PHOTOS) % len(items)]

    def _view(self, item: Item) -> View:
        """The photo of a mask, at a small size."""
        key = item.image, item.mask, item.mask_value
        if key not in self._views:
            region = _region(item.mask, item.mask_value)  # first, because it needs the most memory
            self._views[key] = view_of(read_image(item.image), region)
        return self._views[key]


class MaskFiles:
    """Given mask files, used as they are: FOLDER/<damage>/*.png, or FOLDER/*.png for every class."""

    whole = True  # all of a mask must be in the model's view

    def __init__(self, files: dict[str, list[Path]], seed: int) -> None:
        self._files, self.seed, self.classes = files, seed, list(files)
        self._sizes: dict[Path, tuple[int, int]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Nothing: the masks are not moved."""
        return {}

    def files(self, *classes: str) -> list[Path]:
        """The mask files of these classes, by default of all."""
        return sorted({file for name in classes or self.classes for file in self._files[name]})

    def sources(self, name: str) -> list[Path]:
        """No photos: the masks are not moved."""
        return []

    def attempts(self, damage: str) -> int:
        """How many attempts there are for an image: one for each mask."""
        return len(self._files[damage])

    def photo_for(self, damage: str, number: int, photos: list[Path], attempt: int = 0) -> Path:
        """The photo named like the mask, or else one of its size, by chance. Raises DoesNotFit."""
        file = self._file(damage, number, attempt)
        dealt = photos[shuffled(len(photos), self.seed, "photo", damage, number=number)]
        name = pair_name(file)
        named = [photo for photo in photos if nfc(photo.stem) == name]
        start = photos.index(dealt)
        candidates = named[:1] or [dealt, *photos[start + 1:], *photos[:start]]
        for photo in candidates:
            if self._size(photo) == self._size(file):
                return photo
        (width, height), (wide, high) = self._size(candidates[0]), self._size(file)
        raise DoesNotFit(f"{file}: {wide}x{high}, but its photo {candidates[0]} is {width}x{height}"
                         f"{'' if named else ' and no other photo fits'}; make the sizes equal")

    def place(self, damage: str, number: int, photo: np.ndarray | None = None, attempt: int = 0) -> Placed:
        """Mask `number` of a class: all its pixels that are not 0. The photo is not looked at."""
        file = self._file(damage, number, attempt)
        return Placed(_region(file, None), {"mask": str(file), "transform": None})

    def _file(self, damage: str, number: int, attempt: int) -> Path:
        return self._files[damage][(number + attempt) % len(self._files[damage])]

    def _size(self, file: Path) -> tuple[int, int]:
        if file not in self._sizes:
            self._sizes[file] = size_of(file)
        return self._sizes[file]


def open_masks(masks: str | None, header: Header, classes: list[str], seed: int,
               jitter: float = JITTER) -> MaskBank | MaskFiles:
    """--masks: a dataset (by default the checkpoint's own) is a bank, a folder of mask files is used as is.

    Raises UserError for a folder that is not there, a class without masks and a given mask that is empty.
    """
    if masks and Path(masks).is_dir() and not product_folders(Path(masks)):
        given = MaskFiles(_mask_files(Path(masks), classes), seed)
        for file in given.files():
            _region(file, None)
        return given
    others = {"data": [masks], "damage_type_to_class_id": [], "dataset_sources": [], "product_classes": [],
              "max_samples_per_damage_type": None} if masks else {}
    config = trained_with(header, DataConfig, load_masks=True, **others)
    try:
        for name in config.data if masks is None else []:
            followed(name, "the checkpoint", f"give --masks {shlex.quote(name)}, or others")
        dataset = load_dataset(config, header.resolution)
    except UserError as error:
        if masks:
            raise
        raise UserError(f"{error}. These are the masks of the checkpoint's --data: --masks names others"
                        ) from error
    return MaskBank(_bank(dataset, classes, " ".join(config.data)), seed, config.orientation, jitter)


def _bank(dataset: DefectDataset, classes: list[str], name: str) -> dict[str, list[Item]]:
    """The items with masks of each class; `good` takes everyone's. Raises UserError where one has none."""
    own: dict[str, list[Item]] = {damage: [] for damage in dataset.classes}
    for item in dataset.items:
        if item.mask is not None and not is_good(dataset.classes[item.class_id]):
            own[dataset.classes[item.class_id]].append(item)
    everyone = [item for items in own.values() for item in items]
    bank = {damage: everyone if is_good(damage) else own.get(damage, []) for damage in classes}
    for damage, items in bank.items():
        if not items:
            raise UserError(f"{name}: has no masks of {damage}; give --masks a dataset that has, or a folder "
                            "of masks, or ask for other --classes")
    return bank


def _region(file: Path | None, value: int | None) -> np.ndarray:
    """The damage (H,W) in a mask file. Raises UserError where there is none, or the file is damaged."""
    assert file is not None
    mask = region_of(read_mask(file), value)
    if not mask.any():
        raise UserError(f"{file}: an empty mask; draw where the damage is, or remove it")
    return mask


def _mask_files(folder: Path, classes: list[str]) -> dict[str, list[Path]]:
    """The mask files of each class. Raises UserError where one has none."""
    own = {name: folder / name.split("/")[-1] for name in classes}
    places = {name: place if place.is_dir() else folder for name, place in own.items()}
    scan = Scan()
    found = {place: pictures_in(place, scan) for place in dict.fromkeys(places.values())}
    for line in scan.lost + scan.notes if distributed.first() else []:
        print(line, file=sys.stderr)
    for name, place in places.items():
        if not found[place]:
            raise UserError(f"--masks {folder}: no mask files for {name}; give a folder with *.png, or with "
                            f"{own[name].name}/*.png, or a dataset's folder")
    return {name: found[place] for name, place in places.items()}
