"""Defect Spectrum folders -> (image, mask, class). `doctor` checks such a folder, `demo` draws one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataset import augmentation
from dataset.classes import class_order, group_by_class, subset
from dataset.findings import findings
from dataset.image_files import read_image
from dataset.layouts import GOOD, Photo, find_products, is_good, select_products
from dataset.mask_files import read_mask, region_of
from dataset.scan import scan_products
from runtime import errors
from runtime.cli import flag
from runtime.errors import UserError
from runtime.seeds import numpy_rng

CACHE_BYTES = 2 << 30
MOST_CHANNELS = 31  # masks by class are the bits of an int32


@dataclass
class DataConfig:
    """The recipe's data_config: every entry is a flag."""

    data: list[str] = flag(..., "product folders, folders of these, or names in the hub dataset such as "
                           "DS-MVTec/bottle, which are downloaded once", group="data", common=True)
    resolution: int = flag(512, "side of the training images in pixels, a multiple of 64", group="data",
                           minimum=64, maximum=4096, common=True)
    augment: bool = flag(True, "move, turn and relight the images, differently every epoch", group="data")
    orientation: str = flag("any", "any: augment with flips and quarter turns; fixed: without, for parts "
                            "that lie one way", group="data", choices=augmentation.ORIENTATIONS, common=True)
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


@dataclass(frozen=True)
class Item(Photo):
    """A photo with its class id."""

    class_id: int


def check_resolution(resolution: int) -> int:
    """Return `resolution`. Raises UserError unless VAE and UNet, 8 times each, divide it evenly."""
    if resolution < 64 or resolution % 64:
        low = max(64, resolution // 64 * 64)
        raise UserError(f"--resolution {resolution}: not a multiple of 64; use {low} or {low + 64}")
    return resolution


class DefectDataset(torch.utils.data.Dataset):
    """Examples in a fixed order; each is a pure function of (seed, epoch, index) alone.

    An image that is not square is cut to its largest square: in the middle, or, if it has a mask, moved along
    the longer side to hold the damage. Up to 2 GB of decoded images stay in memory.
    """

    def __init__(self, items: list[Item], classes: list[str], config: DataConfig, resolution: int,
                 masks_by_class: bool = False) -> None:
        self.items, self.classes, self.config, self.resolution = items, classes, config, resolution
        self.channels = len(classes) if masks_by_class else 1
        self._cache: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._room = CACHE_BYTES
        self.notes: list[str] = []  # on what was found and not used

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

    def warnings(self) -> list[str]:
        """One line for each thing that a user should know before training. Reads every mask once."""
        return self.notes + findings(self.items)

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
            motion = augmentation.draw_motion(rng, self.config.orientation, region)
            image = augmentation.relight(augmentation.warp(pixels, motion, self.resolution), rng)
        else:
            motion = augmentation.IDENTITY
            image = augmentation.warp(pixels, motion, self.resolution).astype(np.float32) / 255
        if self.config.normalize_to_neg1_pos1:
            image = image * 2 - 1
        # In numpy: torch's threads would compete with the training step for the cores.
        example: dict[str, Any] = {"image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
                                   "class_id": self.items[index].class_id}
        if self.config.load_masks:
            mask = (np.zeros((self.resolution, self.resolution), np.uint8) if region is None
                    else augmentation.warp_mask(region, motion, self.resolution))
            bits = np.arange(self.channels, dtype=mask.dtype)[:, None, None]
            example["mask"] = torch.from_numpy((mask >> bits & 1).astype(np.float32))
        return example

    def preload(self) -> None:
        """Decode as many images as fit in memory, before workers that share them are forked.

        Raises UserError for the first that cannot be decoded.
        """
        for index in range(len(self)):
            self._decoded(index)
            if index not in self._cache:
                return

    def _decoded(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The square image (S,S,3) uint8 and, with load_masks, where damage is (S,S), see _region."""
        if index in self._cache:
            return self._cache[index]
        item = self.items[index]
        image = read_image(item.image)
        height, width = image.shape[:2]
        region = self._region(item) if self.config.load_masks or height != width else None
        box = augmentation.square_box(image.shape, region)
        pixels = augmentation.prepare(image, box, self.resolution)
        if region is not None:  # without load_masks it only chose the square
            region = augmentation.prepare(region, box, self.resolution) if self.config.load_masks else None
        size = pixels.nbytes + (0 if region is None else region.nbytes)
        if size <= self._room:
            self._cache[index] = pixels, region
            self._room -= size
        return pixels, region

    def _region(self, item: Item) -> np.ndarray | None:
        """The item's damage, (H,W) uint8; with masks_by_class all damage of its photo, a bit a class, int32.

        Bits pass through augmentation as they are: resampling takes nearest points and joins them by "or".
        """
        region = item.region()
        if region is None:
            return None
        if not region.any() and not is_good(self.classes[item.class_id]):
            raise UserError(f"{item.mask}: empty, but its image is not {GOOD}; draw it or move the image")
        if self.channels == 1:
            return region
        bits = np.zeros(region.shape, np.int32)
        for other in self.items:
            if other.image == item.image and other.mask is not None:
                bits |= region_of(read_mask(other.mask), other.mask_value).astype(np.int32) << other.class_id
        return bits


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
                          for photo in scan.photos if photo.mask is None and not is_good(photo.damage)]
    if scan.problems:
        more = len(scan.problems) - 1
        raise UserError(scan.problems[0] + (f" (and {more} more: see python data.py doctor)" if more else ""))
    by_class = group_by_class(scan.photos)
    classes = class_order(set(by_class), config.damage_type_to_class_id)
    items = [Item(**vars(photo), class_id=class_id)
             for class_id, name in enumerate(classes)
             for photo in subset(by_class[name], name, config.max_samples_per_damage_type, config.seed)]
    if masks_by_class and len(classes) > MOST_CHANNELS:
        raise UserError(f"{len(classes)} classes: masks by class are possible for {MOST_CHANNELS} at most")
    dataset = DefectDataset(items, classes, config, resolution, masks_by_class)
    dataset.notes = scan.lost + scan.notes
    return dataset


def main() -> None:
    """The command line: check data, or draw the demo dataset."""
    if sys.argv[1:2] == ["demo"]:
        from tiny.demo import main as draw_demo
        draw_demo(__doc__)
    else:
        from dataset.doctor import main as doctor
        doctor(__doc__, check_resolution)


if __name__ == "__main__":
    errors.run(main)
