"""Training data for inpainting: images, and in each the hole that the model learns to fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import DataConfig, DefectDataset, Item, load_dataset
from dataset.augmentation import IDENTITY, draw_motion, warp_mask
from dataset.layouts import is_good
from dataset.masks import FEW_CELLS, latent_cells, random_mask, training_hole
from dataset.placement import Motion, move, place
from dataset.views import View, view_of
from runtime.seeds import numpy_rng

SHOWN = 5  # files named in a warning
PLACEMENTS, TRIES = 8, 3  # of other images' damage on an image, in all epochs; damages tried for one of them


class HoleDataset(DefectDataset):
    """Examples with a `hole`: the damage and an uneven margin around it, a function of (seed, epoch, index).

    Half the holes of undamaged images have the shape of another image's damage, placed where it would be
    painted, the others a random shape. So neither shape nor place of a hole tells whether damage belongs
    there; the class alone does.
    """

    varies = True  # the holes do, even without augmentation

    def __init__(self, items: list[Item], classes: list[str], config: DataConfig, resolution: int) -> None:
        super().__init__(items, classes, config, resolution)
        self._views: dict[int, View] = {}
        self._placed: dict[tuple[int, int], tuple[int, Motion] | None] = {}

    def example(self, index: int, epoch: int) -> dict[str, Any]:
        """DefectDataset's example with its mask, and hole (1,R,R) in {0,1}, float32, never empty."""
        example = super().example(index, epoch)
        rng = numpy_rng(self.config.seed, "hole", epoch, index)
        mask = example["mask"][0].numpy().astype(np.uint8)
        if not mask.any():
            number = int(rng.integers(PLACEMENTS))
            borrowed = self._borrowed(index, number, epoch) if rng.random() < 0.5 else None
            mask = random_mask(rng, self.resolution) if borrowed is None else borrowed
        example["hole"] = torch.from_numpy(training_hole(rng, mask).astype(np.float32)[None])
        return example

    def _borrowed(self, index: int, number: int, epoch: int) -> np.ndarray | None:
        """Placement `number` of another image's damage on this one, moved as it is in this epoch: (R,R); None
        where none of those tried finds a place."""
        if (index, number) not in self._placed:
            rng = numpy_rng(self.config.seed, "borrowed", index, number)
            damaged = [i for i in self._siblings(index) if self._is_damaged(i)]
            tries = rng.permutation(damaged)[:TRIES].tolist()
            found = ((i, motion) for i in tries if (motion := self._place(rng, i, index)))
            self._placed[index, number] = next(found, None)
        placed = self._placed[index, number]
        return None if placed is None else self._moved(*placed, index, epoch)

    def _place(self, rng: np.random.Generator, damaged: int, index: int) -> Motion | None:
        """Where an image's damage goes on another image."""
        region = self._decoded(damaged)[1]
        if region is None or not region.any():
            return None
        return place(rng, self._view(damaged), self._view(index), self.config.orientation)

    def _view(self, index: int) -> View:
        if index not in self._views:
            self._views[index] = view_of(*self._decoded(index))
        return self._views[index]

    def _moved(self, damaged: int, placed: Motion, index: int, epoch: int) -> np.ndarray | None:
        """The damage (R,R) of an image as placed on another, which is augmented as in this epoch; None where
        nothing of it is seen."""
        pixels, own = self._decoded(index)
        region = self._decoded(damaged)[1]
        assert region is not None
        motion = IDENTITY
        if self.config.augment:
            motion = draw_motion(numpy_rng(self.config.seed, "augmentation", epoch, index),
                                 self.config.orientation, own)
        mask = warp_mask(move(region, placed, *pixels.shape[:2]), motion, self.resolution)
        return mask if mask.any() else None

    def _siblings(self, index: int) -> list[int]:
        """The images of the same product."""
        def product(i: int) -> str:
            return self.classes[self.items[i].class_id].rpartition("/")[0]

        return [i for i in range(len(self)) if product(i) == product(index)]

    def _is_damaged(self, index: int) -> bool:
        return not is_good(self.classes[self.items[index].class_id])

    def preview_inputs(self, class_id: int, count: int) -> tuple[Tensor, Tensor]:
        """image (N,3,R,R) in [-1,1] and hole (N,1,R,R) for previews of a class, N at most `count`.

        The holes are the class's own, placed on undamaged images of the same product; where there are none,
        or no place is found, the images are the class's own too.
        """
        own = [i for i, item in enumerate(self.items) if item.class_id == class_id]
        good = [i for i in self._siblings(own[0]) if not self._is_damaged(i)]
        shown, holes = [], []
        for k, index in enumerate(own[:count]):
            photo, mask = good[k % len(good)] if good else index, None
            rng = numpy_rng(self.config.seed, "preview", class_id, k)
            if photo != index and (placed := self._place(rng, index, photo)):
                mask = self._moved(index, placed, photo, 0)
            shown.append(self.example(photo if mask is not None else index, 0))
            holes.append(shown[-1]["hole"] if mask is None else
                         torch.from_numpy(training_hole(rng, mask).astype(np.float32)[None]))
        return torch.stack([example["image"] for example in shown]), torch.stack(holes)

    def cells(self, index: int) -> int:
        """The number of latent cells that an image's damage covers, without augmentation."""
        _, region = self._decoded(index)
        return 0 if region is None else latent_cells(warp_mask(region, IDENTITY, self.resolution))

    def warnings(self) -> list[str]:
        """DefectDataset's warnings, and the masks that cover few latent cells."""
        damaged = [i for i in range(len(self)) if self._is_damaged(i)]
        small = [(self.items[i].mask, cells) for i in damaged if (cells := self.cells(i)) < FEW_CELLS]
        lines = [f"{file}: covers {cells} latent cells at {self.resolution} px, so little may be learnt from "
                 "it; a larger --resolution shows more" for file, cells in small[:SHOWN]]
        if len(small) > SHOWN:
            lines.append(f"and {len(small) - SHOWN} more such masks")
        return [*super().warnings(), *lines]


def load_holes(config: DataConfig) -> HoleDataset:
    """The data with masks. Errors as load_dataset's."""
    found = load_dataset(config)
    dataset = HoleDataset(found.items, found.classes, found.config, found.resolution)
    dataset.notes = found.notes
    return dataset
