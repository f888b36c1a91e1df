"""How time, memory and disk grow with the number of images.

The base is the smallest possible, with random weights, to measure the commands' own work: 10 to 10,000 images
sampled, evaluate.py on 100 to 10,000 of them, and the latent cache of 20 to 2,000 photos. Results go to
benchmarks/growth.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_base import SMALLEST, write_random_base
from benchmarks.timing import record, timed
from evaluation.networks import LITE
from runtime import errors
from runtime.cli import flag, parse
from tiny.demo import write_demo

CLASSES = 4
SMALL = ("--resolution", 64, "--preview-every", 0, "--no-validate", "--batch-size", 8, "--max-steps", 1)


def measure(what: str, images: int, *command: object) -> dict[str, Any]:
    """Run one of our commands on `images` images: seconds, images a second and peak memory."""
    run = timed([*map(str, command)], lambda: 0)
    row = {"what": what, "images": images, "seconds": round(run.whole, 2),
           "images_per_second": round(images / run.whole, 2), "peak_gib": round(run.memory, 3)}
    print(row, flush=True)
    return row


def cache(folder: Path, photos: int) -> dict[str, Any]:
    """Train one step on `photos` photos, whose latents are cached; the run stays in run<photos>/run."""
    data, run = folder / str(photos), folder / f"run{photos}" / "run"
    write_demo(data, photos // CLASSES, 0, size=64)
    row = measure("cache", photos, "train_class.py", "--data", data, "--base", folder / "base", *SMALL,
                  "--latent-variants", 1, "--out", run)
    files = (run.parent / "latents").rglob("*.safetensors")
    return row | {"cache_bytes": sum(file.stat().st_size for file in files)}


def draw(folder: Path, images: int) -> dict[str, Any]:
    """Sample images of one class into drawn<images>."""
    return measure("draw", images, "sample.py", "--ckpt", folder / "run20" / "run", "--base", folder / "base",
                   "--classes", "good", "--per-class", images, "--steps", 2, "--batch-size", 8, "--out",
                   folder / f"drawn{images}")


def evaluate(folder: Path, images: int) -> dict[str, Any]:
    """Evaluate them against the 20 photos."""
    return measure("evaluate", images, "evaluate.py", "--real", folder / "20", "--fake",
                   folder / f"drawn{images}", "--classes", "good", "--features", LITE,
                   "--judge", LITE, "--out", folder / f"report{images}")


@dataclass
class Config:
    """The command line of benchmarks.growth."""

    most: int = flag(10_000, "largest number of images", minimum=10)
    out: str = flag("benchmarks/growth.json", "where the result goes")


def main() -> None:
    """Encode, sample and evaluate ever more images, and record what each took."""
    config = parse(Config, __doc__, "", program="-m benchmarks.growth")
    work = [(cache, n) for n in (20, 200, 2_000)] + [(draw, n) for n in (10, 100, 1_000, 10_000)]
    work += [(evaluate, n) for n in (100, 1_000, 10_000)]
    with tempfile.TemporaryDirectory() as name:
        write_random_base(Path(name) / "base", *SMALLEST)
        record(config.out, rows=[what(Path(name), images) for what, images in work
                                 if images <= config.most])


if __name__ == "__main__":
    errors.run(main)
