"""Pictures drawn into given masks by a ControlNet: which mask each image takes, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from adapter import Header
from augmentation import IDENTITY, prepare, square_box, warp
from control import to_condition
from errors import UserError
from folders import is_good
from generation import Drawing, Generator
from guidance import Control
from mask_bank import MaskBank, MaskFiles, digest, open_masks
from pictures import tensor_to_image
from sample_folder import Sample


class Steering:
    """Masks given out to (class, number) pairs, as functions of them and the seed alone; `good` has none."""

    def __init__(self, masks: MaskBank | MaskFiles, header: Header, scale: float, guidance: float) -> None:
        self.masks, self.header, self.scale, self.guidance = masks, header, scale, guidance

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a folder have in common, so that a changed input is noticed."""
        return {"control_scale": self.scale, "mask_guidance": self.guidance,
                "inputs": digest(self.masks.all_files())}

    def check(self, wanted: list[tuple[str, int]]) -> None:
        """Raises UserError, before anything is drawn, where a given mask does not fit into a square."""
        if isinstance(self.masks, MaskFiles):
            for pair in wanted:
                self.mask(*pair)

    def mask(self, damage: str, number: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The mask (R,R) in {0,1} of one image, and what is noted of it: as training would have seen it."""
        resolution = self.header.resolution
        if is_good(damage):
            return np.zeros((resolution, resolution), np.uint8), {}
        placed = self.masks.place(damage, number)
        top, left, side = box = square_box(*placed.mask.shape, placed.mask)
        inside = placed.mask[top:top + side, left:left + side].sum()
        if isinstance(self.masks, MaskFiles) and inside < placed.mask.sum():
            raise UserError(f"{placed.about['mask']}: its damage does not fit into a square of {side} "
                            "pixels, its shorter side; cut up the mask")
        region = prepare(placed.mask, box, resolution)
        blank = np.zeros((*region.shape, 3), np.uint8)
        return warp(blank, region, IDENTITY, resolution)[1], placed.about

    def draw(self, generator: Generator, wanted: list[tuple[str, int]], drawing: Drawing) -> list[Sample]:
        """Draw the images called for by (class name, number)."""
        regions, notes = zip(*(self.mask(*pair) for pair in wanted), strict=True)
        class_id = [self.header.classes.index(damage) for damage, _ in wanted]
        masks = torch.from_numpy(np.stack(regions))[:, None]
        if self.header.control.class_channels:
            masks = masks * torch.eye(len(self.header.classes), dtype=masks.dtype)[class_id][:, :, None, None]
        condition = to_condition(masks.to(generator.context.null.device), self.header.control.channels)
        control = Control(generator.control, condition, self.scale, self.guidance)
        images = generator.draw(wanted, drawing, control)
        return [Sample(tensor_to_image(image), None if is_good(damage) else region, about)
                for image, region, about, (damage, _) in zip(images, regions, notes, wanted, strict=True)]


def open_steering(masks: str | None, header: Header, classes: list[str], scale: float, guidance: float,
                  seed: int) -> Steering:
    """--masks, --control-scale and --mask-guidance. Raises UserError where masks are missing."""
    damaged = [name for name in classes if not is_good(name)]
    return Steering(open_masks(masks, header, damaged, seed), header, scale, guidance)
