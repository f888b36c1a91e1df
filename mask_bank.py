"""Where damage goes on a photo: real masks re-placed on the object, or given mask files as they are.

Each choice is a function of (seed, class, number) alone and says of itself what it was, for samples.jsonl.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data import DataConfig, DefectDataset, Item, load_dataset
from decode import MASK_SUFFIXES, read_image, read_mask, region_of, size_of
from errors import UserError
from folders import is_good
from foreground import Object, as_seen_in_both, find_object
from header import Header, trained_with
from named import followed
from seeds import numpy_rng

TRIES = 20  # placements looked at until one lies on the object
ENOUGH = 0.95  # share of the damage that must


class Placed(NamedTuple):
    """A mask (H,W) uint8 in {0,1} in its photo's pixels, and what is noted of it."""

    mask: np.ndarray
    about: dict[str, Any]


class Motion(NamedTuple):
    """Source pixels p -> linear (2,2) @ p + shift (2,), in (x, y); `about` says it in words."""

    linear: np.ndarray
    shift: np.ndarray
    about: dict[str, Any]


def deal(count: int, *key: int | str, number: int) -> int:
    """The index on card `number` of a deck of `count`, shuffled anew each time it has been dealt out."""
    return int(numpy_rng(*key, number // count).permutation(count)[number % count])


class MaskBank:
    """The real masks of each damage type, re-placed: turned, mirrored, scaled and shifted with the object.

    On a round object the damage stays at its distance from the centre; a picture without an object, such as
    of cloth, takes it anywhere. `good` has no masks of its own and borrows all others'.
    """

    def __init__(self, items: dict[str, list[Item]], seed: int, orientation: str) -> None:
        self.items, self.seed, self.orientation = items, seed, orientation
        self._objects: dict[Path, Object] = {}

    def all_files(self) -> list[Path]:
        """Every mask file that may be taken."""
        return sorted({item.mask for items in self.items.values() for item in items})

    def photo_for(self, damage: str, number: int, photos: list[Path]) -> Path:
        """The photo that mask `number` of a class goes on: each one is used before any comes again."""
        return photos[deal(len(photos), self.seed, "photo", damage, number=number)]

    def place(self, damage: str, number: int, photo: np.ndarray | None = None) -> Placed:
        """Mask `number` of a class on a photo (H,W,3), or on its own photo. Raises UserError for a bad file.
        """
        items = self.items[damage]
        item = items[deal(len(items), self.seed, "mask", damage, number=number)]
        mask = _region(item.mask, item.mask_value)
        if item.image not in self._objects:
            self._objects[item.image] = find_object(read_image(item.image), mask)
        source = self._objects[item.image]
        target = source if photo is None else find_object(photo)
        rng = numpy_rng(self.seed, "placement", damage, number)
        motion = self._place(rng, mask, *as_seen_in_both(source, target))
        placed = move(mask, motion, *target.region.shape)
        if not placed.any():
            raise UserError(f"{item.mask}: cannot be placed within a photo of {target.region.shape[1]}x"
                            f"{target.region.shape[0]} pixels; give larger photos or other --masks")
        return Placed(placed, {"mask": str(item.mask), "transform": motion.about})

    def _place(self, rng: np.random.Generator, mask: np.ndarray, source: Object, target: Object) -> Motion:
        """The first of some random placements that leaves the damage on the object, or else the best."""
        points = np.argwhere(mask)[:, ::-1] + 0.5
        points = points[::max(1, len(points) // 2000)]
        best, most = None, -1.0
        for _ in range(TRIES):
            motion = draw_motion(rng, points.mean(axis=0), source, target, self.orientation)
            share = target.share(points @ motion.linear.T + motion.shift)
            if share > most:
                best, most = motion, share
            if most >= ENOUGH:
                break
        return best


def draw_motion(rng: np.random.Generator, middle: np.ndarray, source: Object, target: Object,
                orientation: str) -> Motion:
    """A random way from the source's pixels to the target's, for damage about `middle` (x, y).

    Angles and mirrors are about the object's centre, so the damage keeps its distance from it; the damage's
    own size changes about its middle. Parts of fixed orientation are turned by 10 degrees at most.
    """
    free = orientation == "any"
    angle = rng.uniform(-180, 180) if free and source.round else 90 * rng.integers(4) * free
    angle, flip = angle + (0 if source.round and free else rng.uniform(-10, 10)), free and rng.random() < 0.5
    zoom, wander = rng.uniform(0.9, 1.1), target.freedom * target.radius * rng.uniform(-1, 1, 2)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[c, -s], [s, c]]) @ np.diag([-1.0 if flip else 1.0, 1.0])
    turn *= target.radius / source.radius
    moved = target.centre + turn @ (middle - source.centre) + wander
    linear = zoom * turn
    shift = moved - linear @ middle
    about = {"angle": round(float(angle), 2), "flip": bool(flip), "zoom": round(float(zoom), 4),
             "matrix": np.column_stack([linear, shift]).round(5).tolist()}
    return Motion(linear, shift, about)


def move(mask: np.ndarray, motion: Motion, height: int, width: int) -> np.ndarray:
    """A mask moved into a photo of that size. One point on the damage is enough for a pixel to be on it."""
    scale = np.sqrt(abs(np.linalg.det(motion.linear)))
    k = 1 + int(np.ceil(1 / scale))  # at least two points for each pixel of the mask and of the photo
    back = np.linalg.inv(motion.linear) / k
    offset = -k * back @ motion.shift
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    points = Image.fromarray(mask).transform((width * k, height * k), Image.Transform.AFFINE, coefficients,
                                             Image.Resampling.NEAREST)
    return np.asarray(points).reshape(height, k, width, k).max(axis=(1, 3))


class MaskFiles:
    """Given mask files, used as they are: FOLDER/<damage>/*.png, or FOLDER/*.png for every class."""

    def __init__(self, files: dict[str, list[Path]], seed: int) -> None:
        self.files, self.seed = files, seed

    def photo_for(self, damage: str, number: int, photos: list[Path]) -> Path:
        """The photo called as the mask is, else one dealt out. Raises UserError where their sizes differ."""
        file = self._file(damage, number)
        stem = file.stem.removesuffix("_mask")
        dealt = photos[deal(len(photos), self.seed, "photo", damage, number=number)]
        photo = next((path for path in photos if path.stem == stem), dealt)
        (width, height), (wide, high) = size_of(photo), size_of(file)
        if (width, height) != (wide, high):
            raise UserError(f"{file}: {wide}x{high}, but its photo {photo} is {width}x{height}; make the "
                            "sizes equal")
        return photo

    def place(self, damage: str, number: int, photo: np.ndarray | None = None) -> Placed:
        """Mask `number` of a class, wherever it is not 0; the photo is not looked at."""
        file = self._file(damage, number)
        return Placed(_region(file, None), {"mask": str(file), "transform": None})

    def all_files(self) -> list[Path]:
        """Every mask file that may be taken."""
        return sorted({file for files in self.files.values() for file in files})

    def _file(self, damage: str, number: int) -> Path:
        return self.files[damage][number % len(self.files[damage])]


def open_masks(masks: str | None, header: Header, classes: list[str], seed: int) -> MaskBank | MaskFiles:
    """--masks: a dataset (by default the checkpoint's own) is a bank, a folder of mask files is used as is.

    Raises UserError for a folder that is not there, a class without masks and a given mask that is empty.
    """
    if masks and Path(masks).is_dir() and not _is_dataset(Path(masks)):
        files = {name: _mask_files(Path(masks), name.split("/")[-1]) for name in classes}
        given = MaskFiles(files, seed)
        for file in given.all_files():
            _region(file, None)
        return given
    others = {"data": [masks], "damage_type_to_class_id": [], "dataset_sources": [], "product_classes": [],
              "max_samples_per_damage_type": None} if masks else {}
    config = trained_with(header, DataConfig, load_masks=True, **others)
    try:
        for name in config.data if masks is None else []:
            followed(name, "the checkpoint", f"give --masks {name}, or others")
        dataset = load_dataset(config, header.resolution)
    except UserError as error:
        if masks:
            raise
        raise UserError(f"{error}. The masks of the checkpoint's --data were looked for: --masks names others"
                        ) from error
    return MaskBank(_bank(dataset, classes, " ".join(config.data)), seed, config.orientation)


def _bank(dataset: DefectDataset, classes: list[str], name: str) -> dict[str, list[Item]]:
    """The items with masks of each class; `good` borrows everyone's. Raises UserError where one has none."""
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


def _is_dataset(folder: Path) -> bool:
    """Whether it holds image/, itself or below, as products do."""
    return any(next(folder.glob(f"{above}image"), None) for above in ("", "*/", "*/*/"))


def _region(file: Path, value: int | None) -> np.ndarray:
    """The damage (H,W) in a mask file. Raises UserError where there is none, or the file is damaged."""
    mask = region_of(read_mask(file), value)
    if not mask.any():
        raise UserError(f"{file}: an empty mask; draw where the damage is, or remove it")
    return mask


def _mask_files(folder: Path, damage: str) -> list[Path]:
    """The mask files of one class. Raises UserError where there are none."""
    place = folder / damage if (folder / damage).is_dir() else folder
    files = sorted(path for path in place.iterdir() if path.suffix.lower() in MASK_SUFFIXES)
    if not files:
        raise UserError(f"--masks {folder}: no mask files for {damage}; give a folder with *.png, or with "
                        f"{damage}/*.png, or a dataset's folder")
    return files


def digest(files: list[Path]) -> str:
    """16 hex digits of file names and sizes, by which a folder that has changed is noticed."""
    names = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()
