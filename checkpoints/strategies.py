"""The three strategies: how their checkpoints differ in loading and sampling."""

from __future__ import annotations

from typing import NamedTuple

CONTROL_FLAGS = ("masks", "mask_jitter", "view", "placement_only", "control_scale", "mask_guidance")


class Strategy(NamedTuple):
    """What a checkpoint of one kind can do."""

    script: str  # that trains it
    flags: tuple[str, ...] = ()  # of sample.py, beyond those of every strategy
    inpaints: bool = False  # has a nine-channel UNet and paints into photos
    controls: bool = False  # holds a ControlNet

    @property
    def takes_masks(self) -> bool:
        """Whether an image is conditioned on a mask."""
        return self.inpaints or self.controls


STRATEGIES = {
    "class": Strategy("train_class.py"),
    "inpaint": Strategy("train_inpaint.py", inpaints=True, flags=(
        *CONTROL_FLAGS, "control", "images", "damages_per_image", "strength", "paste", "match_colour")),
    "control": Strategy("train_controlnet.py", CONTROL_FLAGS, controls=True)}
