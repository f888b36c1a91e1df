"""Training data for inpainting: images, and in each the hole that the model learns to fill."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from augmentation import IDENTITY, warp
from data import DataConfig, DefectDataset, load_dataset
from folders import is_good
from masks import FEW_CELLS, latent_cells, random_mask, training_hole
from seeds import numpy_rng

SHOWN = 5  # files named in a warning


class HoleDataset(DefectDataset):
    """Examples with a `hole`: the damage and an uneven margin around it, a function of (seed, epoch, index).

    On undamaged images half the holes are those of some damaged image, the others of any shape: the class
    alone, not the hole's shape or place, is to say whether damage belongs there.
    """

    varies = True  # the holes do, also without augmentation

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """As DefectDataset's with masks, and hole (1,R,R) in {0,1}, float32."""
        example = super().example(index, epoch)
        rng = numpy_rng(self.config.seed, "hole", epoch, index)
        mask = example["mask"][0].numpy().astype(np.uint8)
        if not mask.any():
            mask = self._borrowed(rng, epoch) if rng.random() < 0.5 else random_mask(rng, self.resolution)
        example["hole"] = torch.from_numpy(training_hole(rng, mask).astype(np.float32)[None])
        return example

    def _borrowed(self, rng: np.random.Generator, epoch: int) -> np.ndarray:
        """The mask (R,R) of some damaged image, or a random one where no image is."""
        damaged = [index for index, item in enumerate(self.items) if not is_good(self.classes[item.class_id])]
        if not damaged:
            return random_mask(rng, self.resolution)
        return super().example(int(rng.choice(damaged)), epoch)["mask"][0].numpy().astype(np.uint8)

    def cells(self, index: int) -> int:
        """The number of latent cells that the damage of an image covers, as it lies in the file."""
        pixels, region = self._decoded(index)
        _, mask = warp(pixels, region, IDENTITY, self.resolution)
        return latent_cells(mask)


def load_holes(config: DataConfig) -> HoleDataset:
    """The data with masks. Names on stderr masks that cover few latent cells. Errors as load_dataset's."""
    found = load_dataset(config)
    dataset = HoleDataset(found.items, found.classes, found.config, found.resolution)
    damaged = [i for i, item in enumerate(dataset.items) if not is_good(dataset.classes[item.class_id])]
    small = [(dataset.items[i].mask, cells) for i in damaged if (cells := dataset.cells(i)) < FEW_CELLS]
    for file, cells in small[:SHOWN]:
        print(f"{file}: covers {cells} latent cells at {config.resolution} px, so little may be learnt from "
              "it; a larger --resolution shows more", file=sys.stderr)
    if len(small) > SHOWN:
        print(f"and {len(small) - SHOWN} more such masks", file=sys.stderr)
    return dataset
