"""Defect Spectrum folders -> (image, mask, class). `doctor` checks such a folder, `demo` draws one."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dataset import augmentation
from dataset.classes import class_order, group_by_class, subset
from dataset.decoded import DecodedPhotos, Item
from dataset.findings import findings, missing_masks
from dataset.item_views import ItemViews
from dataset.layouts import find_products, select_products
from dataset.padding import FITS, kept, own_cells, slimness
from dataset.scan import scan_products
from dataset.windows import VIEWS, Box, widened
from runtime import errors
from runtime.cli import flag
from runtime.errors import UserError
from runtime.seeds import numpy_rng

MOST_CHANNELS = 31  # masks by class are the bits of an int32


@dataclass
class DataConfig:
    """The recipe's data_config: every entry is a flag."""

    data: list[str] = flag(..., "product folders, folders of these, or names in the hub dataset such as "
                           "DS-MVTec/bottle, which are downloaded once", group="data", common=True)
    resolution: int = flag(512, "side of the training images in pixels, a multiple of 64", group="data",
                           minimum=64, maximum=4096, common=True)
    augment: bool = flag(True, "move, turn and relight the images, differently every epoch", group="data")
    view: str = flag("whole", "what an example shows: whole (the largest square, moving along a long photo), "
                     "close (a square around one damage, for small damage), or mixed", group="data",
                     choices=VIEWS, common=True)
    fit: str = flag("crop", "a photo that is not square: crop (squares of it, by turns) or pad (all of it, "
                    "mirrored around, which the loss leaves out)", group="data", choices=FITS)
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


def check_resolution(resolution: int) -> int:
    """Return `resolution`. Raises UserError unless VAE and UNet, 8 times each, divide it evenly."""
    if resolution < 64 or resolution % 64:
        low = max(64, resolution // 64 * 64)
        raise UserError(f"--resolution {resolution}: not a multiple of 64; use {low} or {low + 64}")
    return resolution


class DefectDataset(torch.utils.data.Dataset):
    """Examples in a fixed order; each is a pure function of (seed, epoch, index) alone.

    An example is a square view of its photo, see dataset/windows.py. Up to 2 GB of decoded images stay in
    memory.
    """

    def __init__(self, items: list[Item], classes: list[str], config: DataConfig, resolution: int,
                 masks_by_class: bool = False) -> None:
        self.items, self.classes, self.config, self.resolution = items, classes, config, resolution
        self.channels = len(classes) if masks_by_class else 1
        self.pads = config.fit == "pad"
        self.shape = kept(list(items), resolution) if self.pads else []  # of the square, what is the photos'
        self.decoded = DecodedPhotos(
            items, resolution, shrunk=config.view == "whole", pads=self.pads, channels=self.channels,
            wanted=self._needs_damage, required=config.load_masks)
        self.views = ItemViews(list(items), config.view, config.seed, resolution, self.decoded.own, self.pads)
        self.notes: list[str] = []  # on what was found and not used

    def __len__(self) -> int:
        return len(self.items)

    @property
    def varies(self) -> bool:
        """Whether an image's examples differ from epoch to epoch."""
        return self.config.augment or self.views.vary

    def summary(self) -> str:
        """How many images there are of each class."""
        counts = [sum(item.class_id == i for item in self.items) for i in range(len(self.classes))]
        return f"{len(self)} images: " + ", ".join(map("{} {}".format, self.classes, counts))

    def warnings(self) -> list[str]:
        """One line for each thing that a user should know before training. Reads every mask once."""
        return self.notes + findings(self.items, self.resolution, "pad" if self.pads else self.config.view)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The example for (epoch, index), which is what the sampler of a DataLoader yields."""
        epoch, index = key
        return self.example(index, epoch)

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """image (3,R,R) in [-1,1] (or [0,1]), class_id, and with load_masks mask (1,R,R) in {0,1}; float32.

        With masks_by_class the mask is (classes,R,R): all damage in the view, not this example's alone. With
        --fit pad also own (1,R/8,R/8) in {0,1}: the latent cells that show the photo, not its mirror alone.
        Without augmentation it is the plain view, resized. Raises UserError where a file cannot be decoded
        or, with load_masks, a damaged image's mask is empty.
        """
        box = self.window(index, epoch)  # first, because it may decode another image
        pixels, region = self.decoded(index)
        motion = augmentation.IDENTITY
        rng = numpy_rng(self.config.seed, "augmentation", epoch, index)
        if self.config.augment:
            cut = None if region is None else augmentation.prepare(region, box, self.resolution)
            slim = slimness(self.items[index]) if self.pads else 1.0
            motion = augmentation.draw_motion(rng, self.config.orientation, cut, slim)
            wide = widened(box, pixels.shape)  # with what lies around it, which turning brings into view
            motion, box = motion * (box[2] / wide[2]), wide
        pixels = augmentation.prepare(pixels, box, self.resolution)
        region = None if region is None else augmentation.prepare(region, box, self.resolution)
        image = augmentation.warp(pixels, motion, self.resolution)
        image = augmentation.relight(image, rng) if self.config.augment else image.astype(np.float32) / 255
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
        if self.pads:
            example["own"] = own_cells(self.items[index], motion, self.resolution)
        return example

    def window(self, index: int, epoch: int) -> Box:
        """The square of an image that an epoch shows, (top, left, side)."""
        return self.views.window(index, epoch)

    def _needs_damage(self, index: int) -> bool:
        """Whether an example, or which view it is, depends on where the item's damage is."""
        return self.config.load_masks or not self.views.shown_whole(index)

    def preload(self) -> None:
        """Decode as many images as fit in memory, before workers that share them are forked.

        Raises UserError for the first that cannot be decoded.
        """
        self.decoded.fill()


def load_dataset(config: DataConfig, resolution: int | None = None,
                 masks_by_class: bool = False) -> DefectDataset:
    """Find, check and number everything in `config.data`; `resolution` replaces the config's.

    Classes are damage types, or product/damage where there are several products. Raises UserError, before
    anything is trained, for whatever is missing, unreadable or inconsistent.
    """
    resolution = check_resolution(config.resolution if resolution is None else resolution)
    products = select_products(find_products(config.data), config.dataset_sources, config.product_classes)
    scan = scan_products(products)
    if config.load_masks or config.view != "whole":
        scan.problems += missing_masks(scan.photos, "" if config.load_masks else config.view)
    if config.fit == "pad" and config.view != "whole":
        scan.problems.append(f"--fit pad: shows each photo whole; --view {config.view} does not, so omit one "
                             "of both")
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
