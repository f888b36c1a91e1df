"""Of how many real photos evaluate.py counts the damaged places right: drawn bottles, and photos with masks.

What counts is chosen on each damage type's own photos, see evaluation/visible_damage.py.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import record
from dataset.layouts import find_products, is_good
from dataset.scan import scan_products
from evaluation.features import read_squares
from evaluation.instances import masks_of
from evaluation.visible_damage import SIZE, calibrate
from runtime import errors
from runtime.cli import flag, parse
from tiny.demo import write_demo


@dataclass
class Config:
    """The command line of benchmarks.places."""

    data: list[str] = flag([], "products of photos, with masks (default: none)", group="what")
    per_class: int = flag(20, "drawn bottles a class", group="how", minimum=1)
    seeds: list[int] = flag([0, 1], "of the drawn bottles; 0 is the demo", group="how", minimum=0)
    out: str = flag("benchmarks/places.json", "where the result goes", group="how")


def agreement(folder: str) -> dict[str, dict[str, list[int]] | str]:
    """Damage type -> how many of each kind of photo are counted right, of how many; or why nothing counts."""
    photos = scan_products(find_products([folder])).photos
    good = read_squares([photo for photo in photos if is_good(photo.damage)], SIZE).numpy()
    found: dict[str, dict[str, list[int]] | str] = {}
    for damage in sorted({photo.damage for photo in photos if not is_good(photo.damage)}):
        own = [photo for photo in photos if photo.damage == damage]
        counter = calibrate(read_squares(own, SIZE).numpy(), masks_of(own), good, "any")
        found[damage] = counter if isinstance(counter, str) else counter.agreement
    return found


def main() -> None:
    """Calibrate on each product, and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.places --data DS-MVTec/bottle\n",
                   program="-m benchmarks.places")
    products: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for seed in config.seeds:
            write_demo(Path(work, str(seed)), config.per_class, seed)
            products[f"data.py demo --seed {seed}"] = agreement(str(Path(work, str(seed))))
    products |= {Path(name).name: agreement(name) for name in config.data}
    record(config.out, per_class=config.per_class, products=products)
    for name, found in products.items():
        for damage, counted in found.items():
            print(f"{name}, {damage}: {counted}")


if __name__ == "__main__":
    errors.run(main)
