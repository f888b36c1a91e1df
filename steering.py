"""Pictures drawn into given masks by a ControlNet: which mask each image takes, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from adapter import find_adapter, read_adapter
from control import Steer
from errors import UserError
from files import sha256
from folders import is_good
from generation import Drawing, Generator
from header import Header
from mask_bank import MaskBank, MaskFiles, digest, open_masks
from paste import make_view
from pictures import tensor_to_image
from sample_folder import Sample


class Steering:
    """Masks given out to (class, number) pairs, as functions of them and the seed alone; `good` has none."""

    def __init__(self, masks: MaskBank | MaskFiles, resolution: int, steer: Steer) -> None:
        self.masks, self.resolution, self.steer = masks, resolution, steer

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a folder have in common, so that a changed input is noticed."""
        return {**self.steer._asdict(), "inputs": digest(self.masks.all_files())}

    def check(self, wanted: list[tuple[str, int]]) -> None:
        """Raises UserError, before anything is drawn, where a given mask does not fit into a square."""
        if isinstance(self.masks, MaskFiles):
            for pair in wanted:
                self.mask(*pair)

    def mask(self, damage: str, number: int) -> tuple[np.ndarray, dict[str, Any]]:
        """The mask (R,R) in {0,1} of one image, and what is noted of it: as training would have seen it."""
        if is_good(damage):
            return np.zeros((self.resolution, self.resolution), np.uint8), {}
        placed = self.masks.place(damage, number)
        blank = np.zeros((*placed.mask.shape, 3), np.uint8)
        view = make_view(blank, placed.mask, self.resolution, placed.about["mask"],
                         whole=isinstance(self.masks, MaskFiles))
        return view.region, placed.about

    def draw(self, generator: Generator, wanted: list[tuple[str, int]], drawing: Drawing) -> list[Sample]:
        """Draw the images called for by (class name, number)."""
        regions, notes = zip(*(self.mask(*pair) for pair in wanted), strict=True)
        damages = [damage for damage, _ in wanted]
        control = generator.steered.control(regions, damages, self.steer)
        images = generator.draw(wanted, drawing, control)
        return [Sample(tensor_to_image(image), None if is_good(damage) else region, about)
                for image, region, about, damage in zip(images, regions, notes, damages, strict=True)]


def open_steering(masks: str | None, header: Header, classes: list[str], steer: Steer, seed: int) -> Steering:
    """--masks. Raises UserError where there are none."""
    damaged = [name for name in classes if not is_good(name)]
    return Steering(open_masks(masks, header, damaged, seed), header.resolution, steer)


def read_steer(control: str | None, header: Header, scale: float, mask_guidance: float,
               guidance: float) -> Steer:
    """--control (None: the checkpoint's own) and its flags. Raises UserError where they do not fit --ckpt."""
    steer = Steer(scale, mask_guidance)
    if control:
        path = find_adapter(Path(control))
        steer, (_, other) = steer._replace(control=sha256(path)), read_adapter(path)
        if other.control is None or other.classes != header.classes or other.resolution != header.resolution:
            raise UserError(f"--control {path}: give a checkpoint of train_controlnet.py for what --ckpt "
                            f"draws: {', '.join(header.classes)} at {header.resolution} px")
        if guidance != 1 and not other.has_null:
            raise UserError(f"--guidance {guidance:g}: {path} was trained without --class-dropout; use 1")
        header = other
    if header.control is None and steer != Steer():
        raise UserError("--control-scale, --mask-guidance: without --control there is nothing to steer")
    if mask_guidance != 1 and header.control.mask_dropout == 0:
        raise UserError(f"--mask-guidance {mask_guidance:g}: the ControlNet was trained without "
                        "--mask-dropout, so an empty mask says that there is no damage; use 1, or train it "
                        "with 0.1 of that")
    return steer
