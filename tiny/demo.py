"""The demo dataset: a drawn product and its masks, in the published layout of Defect Spectrum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.doctor import EXAMPLE
from dataset.layouts import files_of, mask_values
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.files import save_image
from tiny import bolts, bottles

PALETTE = np.array([(0, 0, 0), (220, 60, 60), (60, 180, 75), (60, 100, 220), (230, 160, 40)], np.uint8)
# name: (classes, draws an image and its mask)
PRODUCTS = {"bottle": (bottles.CLASSES, bottles.draw_bottle), "bolt": (bolts.CLASSES, bolts.draw_bolt)}


def write_demo(out: Path, per_class: int, seed: int, size: int = 256, product: str = "bottle") -> None:
    """Write `per_class` images a class, and masks, under `out`; image i is the same for any `per_class`.

    Raises UserError where `out` exists and is not an empty folder.
    """
    classes, draw = PRODUCTS[product]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; name another one for the demo dataset")
    values = mask_values(list(classes))
    for damage in classes:
        for i in range(per_class):
            image, mask = draw(damage, seed * 1_000_000 + i, size)
            if damage in values:
                coloured = Image.fromarray(PALETTE[mask])
                save_image(out / "rgb_mask" / damage / f"{i:03d}_rgb_mask.png", coloured)
            region = mask > 0 if damage in values else None
            files_of(out, damage, i).write(Image.fromarray(image), region, values.get(damage, 0))


@dataclass
class Demo:
    """The command line of `data.py demo`."""

    command: str = flag(..., "demo: draw a dataset, good and damaged, with masks",
                        choices=("demo",), positional=True, group="what")
    out: str = flag(..., "the product folder to write", positional=True, group="what")
    product: str = flag("bottle", "bottle: glass seen from above, at any turn the same; bolt: with parts, "
                        "at any angle", choices=tuple(PRODUCTS), group="what")
    per_class: int = flag(20, "images a class", group="what", minimum=1, maximum=10**5)
    seed: int = flag(0, "another seed draws others", group="what", minimum=0)


def main(description: str) -> None:
    """The command."""
    config = parse(Demo, description, EXAMPLE)
    write_demo(Path(config.out), config.per_class, config.seed, product=config.product)
    classes = ", ".join(PRODUCTS[config.product][0])
    print(f"{config.out}: {config.per_class} images each of {classes}, with masks")
