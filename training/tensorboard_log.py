"""--tensorboard: metrics.jsonl and previews/ once more, in TensorBoard's own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class Board:
    """Scalars by step and previews by epoch, in `folder`; a resumed run writes all of them again."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], previews: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # only where the package tensorboard is installed
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder))
        for row in rows:
            self.log(row)
        for file in sorted(previews.glob("epoch_*.png")):
            with Image.open(file) as image:
                self.picture(int(file.stem.removeprefix("epoch_")), image)

    def log(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl; a preview's scores as validation/dca and so on."""
        scores = {f"validation/{name}": value for name, value in row.get("validation", {}).items()}
        for name, value in (row | scores).items():
            if name not in ("step", "epoch", "validation") and value is not None:
                self.writer.add_scalar(name, value, row["step"])

    def picture(self, epoch: int, image: Image.Image) -> None:
        """A preview."""
        self.writer.add_image("preview", np.asarray(image.convert("RGB")), epoch, dataformats="HWC")
        self.writer.flush()
