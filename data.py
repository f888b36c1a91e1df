"""Defect Spectrum folders -> (image, mask, class); `doctor` looks them over, `demo` draws such a folder."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import errors
from augmentation import IDENTITY, ORIENTATIONS, draw_motion, prepare, relight, square_box, warp
from config import flag, parse
from decode import read_image, read_mask, region_of
from errors import UserError
from folders import GOOD, Photo, find_products, is_good, scan_products, select_products
from seeds import numpy_rng

CACHE_BYTES = 2 << 30
MOST_CHANNELS = 31  # masks by class are the bits of an int32


@dataclass
class DataConfig:
    """The recipe's data_config: every entry is a flag."""

    data: list[str] = flag(..., "product folders, folders of these, or names such as DS-MVTec/bottle, of "
                           "which the hub dataset's newest revision is fetched once", group="data")
    resolution: int = flag(512, "side of the training images in pixels, a multiple of 64", group="data",
                           minimum=64, maximum=4096)
    augment: bool = flag(True, "move, turn and relight the images, differently every epoch", group="data")
    orientation: str = flag("any", "augment with flips and quarter turns, or not: for parts that lie one way",
                            group="data", choices=ORIENTATIONS)
    normalize_to_neg1_pos1: bool = flag(True, "images in [-1,1] rather than [0,1]", group="data")
    seed: int = flag(42, "seed of everything random", group="data", minimum=0)
    load_masks: bool = flag(False, "read the masks as well", group="data")
    dataset_sources: list[str] = flag([], "only these sources, such as DS-MVTec (default: all)",
                                      group="data")
    product_classes: list[str] = flag([], "only these products, such as bottle (default: all)", group="data")
    max_samples_per_damage_type: int | None = flag(None, "at most so many images a class, drawn by --seed "
                                                   "(default: all)", group="data", minimum=1)
    damage_type_to_class_id: list[str] = flag([], "class ids as name=id (default: by the alphabet)",
                                              group="data")


class Item(NamedTuple):
    """One example: where it lies, its class id, and which mask value is its region (None: all but 0)."""

    image: Path
    mask: Path | None
    class_id: int
    mask_value: int | None


def check_resolution(resolution: int) -> int:
    """`resolution` itself. Raises UserError where VAE and UNet, 8 times each, cannot shrink it evenly."""
    if resolution < 64 or resolution % 64:
        low = max(64, resolution // 64 * 64)
        raise UserError(f"--resolution {resolution}: not a multiple of 64; use {low} or {low + 64}")
    return resolution


class DefectDataset(torch.utils.data.Dataset):
    """Examples in a fixed order; each is a pure function of (seed, epoch, index) alone.

    A picture that is not square is cut to the largest square: in the middle, or, where it has a mask, moved
    along its longer side to hold the damage. Decoded pictures stay in memory up to 2 GB.
    """

    def __init__(self, items: list[Item], classes: list[str], config: DataConfig, resolution: int,
                 masks_by_class: bool = False) -> None:
        self.items, self.classes, self.config, self.resolution = items, classes, config, resolution
        self.channels = len(classes) if masks_by_class else 1
        self._cache: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.items)

    @property
    def varies(self) -> bool:
        """Whether an image's examples differ from epoch to epoch."""
        return self.config.augment

    def summary(self) -> str:
        """How many images there are of each class."""
        counts = [sum(item.class_id == i for item in self.items) for i in range(len(self.classes))]
        return f"{len(self)} images: " + ", ".join(map("{} {}".format, self.classes, counts))

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The example for (epoch, index), which is what the sampler of a DataLoader yields."""
        epoch, index = key
        return self.example(index, epoch)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """image (3,R,R) in [-1,1] (or [0,1]), class_id, and with load_masks mask (1,R,R) in {0,1}; float32.

        With masks_by_class the mask is (classes,R,R): all damage in the photo, not this example's alone.
        Without augmentation it is the plain image, resized. Raises UserError where a file cannot be decoded
        or a damaged image's mask is empty.
        """
        pixels, region = self._decoded(index)
        if self.config.augment:
            rng = numpy_rng(self.config.seed, "augmentation", epoch, index)
            motion = draw_motion(rng, self.config.orientation, region)
            warped, mask = warp(pixels, region, motion, self.resolution)
            image = relight(warped, rng)
        else:
            warped, mask = warp(pixels, region, IDENTITY, self.resolution)
            image = warped.astype(np.float32) / 255
        if self.config.normalize_to_neg1_pos1:
            image = image * 2 - 1
        # Numpy to the end: torch's threads would fight with the training step for the cores.
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        example = {"image": image, "class_id": self.items[index].class_id}
        if self.config.load_masks:
            mask = np.zeros((self.resolution, self.resolution), np.uint8) if mask is None else mask
            bits = np.arange(self.channels, dtype=mask.dtype)[:, None, None]
            example["mask"] = torch.from_numpy((mask >> bits & 1).astype(np.float32))
        return example

    def prepare(self, workers: int) -> int:
        """Called once before examples are asked for; how many workers are to be forked that ask for them."""
        if workers:
            self.preload()  # so that they share the decoded pictures
        return workers

    def begin(self, epoch: int) -> None:
        """Called by all processes together before any asks for examples of `epoch` itself."""

    def preload(self) -> None:
        """Decode into memory as much as fits. Raises UserError for the first file that cannot be decoded."""
        for index in range(len(self)):
            self._decoded(index)
            if index not in self._cache:
                return

    def _decoded(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The square image (S,S,3) uint8 and, with load_masks, where damage is (S,S), see _region."""
        if index in self._cache:
            return self._cache[index]
        item = self.items[index]
        image, region = read_image(item.image), None
        height, width = image.shape[:2]
        if item.mask is not None and (self.config.load_masks or height != width):
            region = self._region(item)
        box = square_box(height, width, region)
        pixels = prepare(image, box, self.resolution)
        if region is not None:
            region = prepare(region, box, self.resolution) if self.config.load_masks else None
        size = pixels.nbytes + (0 if region is None else region.nbytes)
        if size <= self._room:
            self._cache[index] = pixels, region
            self._room -= size
        return pixels, region

    def _region(self, item: Item) -> np.ndarray:
        """Where an item's mask shows its damage, (H,W) uint8; with masks_by_class its photo's, a bit a class.

        Bits pass through augmentation as they are: resampling takes nearest points and joins them by "or".
        """
        values = read_mask(item.mask)
        region = region_of(values, item.mask_value)
        if not region.any() and not is_good(self.classes[item.class_id]):
            raise UserError(f"{item.mask}: empty, but its image is not {GOOD}; draw it or move the image")
        if self.channels == 1:
            return region
        bits = np.zeros(values.shape, np.int32)
        for other in self.items:
            if other.image == item.image:
                bits |= region_of(values, other.mask_value).astype(np.int32) << other.class_id
        return bits


def _class_order(names: set[str], given: list[str]) -> list[str]:
    """Class names by id: the alphabet, or --damage-type-to-class-id."""
    if not given:
        return sorted(names)
    ids: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or not name:
            raise UserError(f"--damage-type-to-class-id {text}: expected name=id, such as good=3")
        if name not in names:
            raise UserError(f"--damage-type-to-class-id {text}: no such class in {', '.join(sorted(names))}")
        if name in ids:
            raise UserError(f"--damage-type-to-class-id {text}: {name} is given twice")
        ids[name] = int(number)
    if missing := sorted(names - set(ids)):
        raise UserError(f"--damage-type-to-class-id: no id for {', '.join(missing)}")
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"--damage-type-to-class-id: ids must be 0 to {len(ids) - 1}, each once")
    return sorted(ids, key=ids.__getitem__)


def _thin(photos: list[Photo], name: str, config: DataConfig) -> list[Photo]:
    """At most --max-samples-per-damage-type of one class; the fewer are always among the more."""
    if config.max_samples_per_damage_type is None:
        return photos
    order = numpy_rng(config.seed, "subset", name).permutation(len(photos))
    return [photos[i] for i in sorted(order[:config.max_samples_per_damage_type])]


def group_by_class(photos: list[Photo]) -> dict[str, list[Photo]]:
    """Photos by damage type, or by product/damage where they are of several products."""
    several = len({photo.product for photo in photos}) > 1
    by_class: dict[str, list[Photo]] = {}
    for photo in photos:
        by_class.setdefault(f"{photo.product}/{photo.damage}" if several else photo.damage, []).append(photo)
    return by_class


def load_dataset(config: DataConfig, resolution: int | None = None,
                 masks_by_class: bool = False) -> DefectDataset:
    """Find, check and number everything in `config.data`; `resolution` replaces the config's.

    Classes are damage types, or product/damage where there are several products. Raises UserError, before
    anything is trained, for whatever is missing, unreadable or inconsistent.
    """
    resolution = check_resolution(config.resolution if resolution is None else resolution)
    products = select_products(find_products(config.data), config.dataset_sources, config.product_classes)
    scan = scan_products(products)
    if config.load_masks:
        scan.problems += [f"{photo.image}: no mask, and only {GOOD} may have none; add it or remove the image"
                          for photo in scan.photos if photo.mask is None and photo.damage != GOOD]
    if scan.problems:
        more = len(scan.problems) - 1
        raise UserError(scan.problems[0] + (f" (and {more} more: see python data.py doctor)" if more else ""))
    by_class = group_by_class(scan.photos)
    classes = _class_order(set(by_class), config.damage_type_to_class_id)
    items = [Item(photo.image, photo.mask, class_id, photo.mask_value)
             for class_id, name in enumerate(classes) for photo in _thin(by_class[name], name, config)]
    if masks_by_class and len(classes) > MOST_CHANNELS:
        raise UserError(f"{len(classes)} classes: masks by class are possible for {MOST_CHANNELS} at most")
    return DefectDataset(items, classes, config, resolution, masks_by_class)


@dataclass
class Doctor:
    """The command line of `data.py doctor`."""

    command: str = flag(..., "doctor: look for mistakes before training; demo: draw a dataset of bottles, "
                        "good and damaged (python data.py demo --help)", choices=("doctor", "demo"),
                        positional=True, group="what")
    path: list[str] = flag(..., "what you would give to --data", positional=True, group="what")
    resolution: int = flag(512, "judge masks at this size in pixels", group="what", minimum=64,
                           maximum=4096)
    out: str = flag("doctor.png", "contact sheet to write", group="what")
    json: bool = flag(False, "print one JSON object instead of the page", group="what")


@dataclass
class Demo:
    """The command line of `data.py demo`."""

    command: str = flag(..., "demo: draw a dataset of bottles, good and damaged, with masks",
                        choices=("demo",), positional=True, group="what")
    out: str = flag(..., "the product folder to write", positional=True, group="what")
    per_class: int = flag(20, "images a class", group="what", minimum=1, maximum=10**5)
    seed: int = flag(0, "another seed draws other bottles", group="what", minimum=0)


EXAMPLE = """example:
  python data.py doctor DS-MVTec/bottle
  python data.py doctor my/bottle my/cap --resolution 256 --out look.png
  python data.py demo demo/bottle --per-class 20
The doctor's exit status is 0, 1 where it found problems, 2 where it could not look.
"""


def main() -> None:
    """The command line: look at data, or draw the demo dataset."""
    if sys.argv[1:2] == ["demo"]:
        from demo import CLASSES, write_demo
        config = parse(Demo, __doc__, EXAMPLE)
        write_demo(Path(config.out), config.per_class, config.seed)
        print(f"{config.out}: {config.per_class} images each of {', '.join(CLASSES)}, with masks")
    else:
        from doctor import report
        config = parse(Doctor, __doc__, EXAMPLE)
        sys.exit(report(config.path, check_resolution(config.resolution), Path(config.out), config.json))


if __name__ == "__main__":
    errors.run(main)
