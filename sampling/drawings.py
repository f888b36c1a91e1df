"""A drawing: as the model made it, and as it goes into a sample folder."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.layouts import Files


class Sample(NamedTuple):
    """A generated image, its mask (H,W), k where the k-th damage is, and what samples.jsonl holds of both.

    rejected: why masks that were tried before did not fit. image: None where none fitted.
    """

    image: Image.Image | None
    mask: np.ndarray | None = None
    about: dict[str, Any] = {}
    rejected: tuple[str, ...] = ()


class Entry(NamedTuple):
    """A drawing as it is written: its row, where its files go, and their contents, which the process that
    drew it writes. unplaced: no mask fitted, so there is none."""

    row: dict[str, Any]
    files: Files
    rejected: tuple[str, ...]
    unplaced: bool
    image: Image.Image | None
    mask: np.ndarray | None

    @property
    def thrown_away(self) -> bool:
        """Whether --select did not want it."""
        return "failed" in self.row

    def write(self) -> None:
        """Write the mask, if it has one, then the image."""
        if self.image is not None:
            self.files.write(self.image, self.mask, 1)
