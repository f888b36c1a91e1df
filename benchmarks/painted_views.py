"""Damage painted into drawn boards after training with --view whole and close: is it where its mask says?

Boards with dark rectangles of 8 to 40 pixels, so that painted damage is what is dark. A painted image's IoU
is that of its dark pixels and its mask.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.timing import record, timed
from benchmarks.views import draw
from dataset.image_files import read_image
from dataset.mask_files import read_mask
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import read_rows, save_image

SHAPE = (960, 1440)
DARK = 60  # levels; the boards are 90 to 130, their damage 30


@dataclass
class Config:
    """The command line of benchmarks.painted_views."""

    photos: int = flag(12, "damaged boards, and as many undamaged ones", group="how", minimum=2)
    images: int = flag(16, "images painted with each view", group="how", minimum=1)
    seeds: list[int] = flag([0], "seeds of training", group="how")
    epochs: int = flag(40, "epochs of training", group="how", minimum=1)
    out: str = flag("benchmarks/painted_views.json", "where the result goes", group="how")
    keep: str | None = flag(None, "folder for what was painted (default: deleted)", group="how")


def undamaged(folder: Path, count: int) -> None:
    """Boards without damage, unlike the damaged ones."""
    for number in range(count):
        rng = np.random.default_rng(1000 + number)
        coarse = rng.integers(90, 130, (SHAPE[0] // 40, SHAPE[1] // 40), dtype=np.uint8)
        board = Image.fromarray(coarse).resize(SHAPE[::-1], Image.Resampling.BICUBIC)
        save_image(folder / f"image/good/{number:03}.png", board)


def measure(work: Path, data: Path, view: str, seed: int, config: Config) -> dict[str, Any]:
    """Train, paint, and compare what is dark with the masks."""
    run, out, began = work / f"run-{view}-{seed}", work / f"{view}-{seed}", time.time()
    timed(["train_inpaint.py", "--data", str(data), "--base", "tiny", "--view", view, "--seed", str(seed),
           "--epochs", str(config.epochs), "--preview-every", "0", "--out", str(run)], lambda: 0)
    trained = time.time() - began
    timed(["sample.py", "--ckpt", str(run), "--images", str(data / "image/good"), "--out", str(out),
           "--classes", "spot", "--per-class", str(config.images), "--seed", str(seed), "--steps", "25"],
          lambda: 0)
    found = []
    for row in read_rows(out / "samples.jsonl"):
        dark = read_image(out / row["file"])[..., 0] < DARK
        mask = read_mask(out / f"mask/spot/{row['number']:03}_mask.png") > 0
        found.append((dark & mask).sum() / max(1, (dark | mask).sum()))
    return {"view": view, "seed": seed, "images": len(found), "iou": round(float(np.mean(found)), 3),
            "quartiles": np.percentile(found, [25, 50, 75]).round(3).tolist(),
            "over half": round(float(np.mean(np.array(found) > 0.5)), 3), "training, s": round(trained)}


def main() -> None:
    """Measure each view and seed, and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.painted_views --seeds 0 1 2\n",
                   program="-m benchmarks.painted_views")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(config.keep or temporary).resolve()
        data = draw(work / "boards", SHAPE, config.photos)
        undamaged(data, config.photos)
        rows = [measure(work, data, view, seed, config)
                for seed in config.seeds for view in ("whole", "close")]
    record(config.out, shape=SHAPE, photos=config.photos, epochs=config.epochs, rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    errors.run(main)
