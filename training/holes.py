"""Training data for inpainting: images, and in each the hole that the model learns to fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import DataConfig, DefectDataset, Item, load_dataset
from dataset.augmentation import IDENTITY, draw_motion, prepare, warp_mask
from dataset.layouts import is_good
from dataset.masks import FEW_CELLS, random_mask, training_hole
from dataset.placement import Motion, move, place
from dataset.views import View, view_of
from dataset.windows import Box, Place, cells_of, kind_of, moved_place
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
        rng, placed = self._borrowed(index, epoch)
        mask = example["mask"][0].numpy().astype(np.uint8)
        if not mask.any():
            borrowed = None if placed is None else self._moved(*placed, index, epoch)
            mask = random_mask(rng, self.resolution) if borrowed is None else borrowed
        example["hole"] = torch.from_numpy(training_hole(rng, mask).astype(np.float32)[None])
        return example

    def window(self, index: int, epoch: int) -> Box:
        """DefectDataset's view, or one that holds the damage placed on an undamaged image."""
        if self.views.shown_whole(index):
            return super().window(index, epoch)
        _, placed = self._borrowed(index, epoch)
        held = None if placed is None else self._landing(*placed, index, epoch)
        return self.views.window(index, epoch, held)

    def _landing(self, damaged: int, placed: Motion, index: int, epoch: int) -> Place | None:
        """Where a place of an image's damage comes to lie on another image; None if outside."""
        kind, turn = self.views.turn(index, epoch)
        places = self.views.places(damaged, kind)
        return moved_place(places[turn % len(places)], placed.linear, placed.shift, self.views.shape(index))

    def _borrowed(self, index: int, epoch: int) -> tuple[np.random.Generator, tuple[int, Motion] | None]:
        """The generator of an example's hole, and on half the undamaged images another image's damage and
        where it goes; None where none of those tried finds a place."""
        rng = numpy_rng(self.config.seed, "hole", epoch, index)
        region = self.decoded(index)[1]
        if region is not None and region.any():
            return rng, None
        number = int(rng.integers(PLACEMENTS))
        return rng, self._placement(index, number) if rng.random() < 0.5 else None

    def _placement(self, index: int, number: int) -> tuple[int, Motion] | None:
        """Placement `number` of another image's damage on this one."""
        if (index, number) not in self._placed:
            rng = numpy_rng(self.config.seed, "borrowed", index, number)
            tries = rng.permutation(self.views.siblings(index, damaged=True))[:TRIES].tolist()
            found = ((i, motion) for i in tries if (motion := self._place(rng, i, index)))
            self._placed[index, number] = next(found, None)
        return self._placed[index, number]

    def _place(self, rng: np.random.Generator, damaged: int, index: int) -> Motion | None:
        """Where an image's damage goes on another image."""
        region = self.decoded(damaged)[1]
        if region is None or not region.any():
            return None
        return place(rng, self._view(damaged), self._view(index), self.config.orientation)

    def _view(self, index: int) -> View:
        if index not in self._views:
            self._views[index] = view_of(*self.decoded(index))
        return self._views[index]

    def _moved(self, damaged: int, placed: Motion, index: int, epoch: int) -> np.ndarray | None:
        """The damage (R,R) of an image as placed on another, in the view and motion of this epoch; None where
        nothing of it is seen."""
        own, region = self.decoded(index)[1], self.decoded(damaged)[1]
        assert region is not None
        top, left, side = box = self.window(index, epoch)
        within = placed._replace(shift=placed.shift - (left, top))
        mask, motion = prepare(move(region, within, side, side), (0, 0, side), self.resolution), IDENTITY
        if self.config.augment:
            motion = draw_motion(numpy_rng(self.config.seed, "augmentation", epoch, index),
                                 self.config.orientation,
                                 None if own is None else prepare(own, box, self.resolution))
        mask = warp_mask(mask, motion, self.resolution)
        return mask if mask.any() else None

    def preview_inputs(self, class_id: int, count: int) -> tuple[Tensor, Tensor]:
        """image (N,3,R,R) in [-1,1] and hole (N,1,R,R) for previews of a class, N at most `count`.

        The holes are the class's own, placed on undamaged images of the same product; where there are none,
        or no place is found, the images are the class's own too.
        """
        own = [i for i, item in enumerate(self.items) if item.class_id == class_id]
        good = self.views.siblings(own[0], damaged=False)
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
        """The number of latent cells that an image's damage covers in a usual view."""
        region, kind = self.decoded(index)[1], kind_of(self.config.view, 1)[0]
        return 0 if region is None else cells_of(region, kind, self.resolution)

    def warnings(self) -> list[str]:
        """DefectDataset's warnings, and the masks that cover few latent cells."""
        damaged = [i for i, item in enumerate(self.items) if not is_good(item.damage)]
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
