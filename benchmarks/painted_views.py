"""Damage painted into drawn boards after training with --view whole and close: is it where its mask says, of
the type asked for, and does it help a segmenter?

Boards with dark spots and bright flakes, rectangles of 8 to 40 pixels. So painted damage is what is dark, or
bright: a painted image's IoU is that of these pixels and its mask, and its type is right where its mask is
darker, or brighter, than any board. Segmenters see tiles around the damage, in which it is large.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.downstream import downstream
from benchmarks.timing import record, timed
from benchmarks.views import draw
from dataset.image_files import read_image
from dataset.layouts import files_of
from dataset.mask_files import read_mask
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import read_rows, save_image

SHAPE = (960, 1440)
DAMAGES = {"spot": 30, "flake": 200}  # levels; the boards are 90 to 130
DARK, BRIGHT = 60, 160
TILE = 160  # pixels


@dataclass
class Config:
    """The command line of benchmarks.painted_views."""

    photos: int = flag(12, "boards of each damage type, and as many undamaged ones", group="how", minimum=2)
    images: int = flag(12, "images of each type painted with each view", group="how", minimum=1)
    downstream: bool = flag(True, "measure what the images of the first seed add to training", group="how")
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


def tile(out: Path, damage: str, number: int, image: np.ndarray, mask: np.ndarray) -> None:
    """Write a square of TILE pixels with a place of the damage at random in it; of no damage, any."""
    rng, shape = np.random.default_rng(number), image.shape[:2]
    first = np.argwhere(mask)[0] if mask.any() else rng.integers(shape)
    top, left = (int(np.clip(first[i] - rng.integers(20, TILE - 60), 0, shape[i] - TILE)) for i in (0, 1))
    part = np.s_[top:top + TILE, left:left + TILE]
    files_of(out, damage, number).write(Image.fromarray(image[part]), mask[part] if mask.any() else None)


def tiles_of(boards: Path, out: Path) -> Path:
    """Tiles of all boards in a folder, as a dataset."""
    for file in sorted(boards.glob("image/*/*.png")):
        damage, number = file.parent.name, int(file.stem)
        image, mask = read_image(file), np.zeros(SHAPE, np.uint8)
        if (region := boards / f"mask/{damage}/{file.stem}_mask.png").exists():
            mask = (read_mask(region) > 0).astype(np.uint8)
        tile(out, damage, number, image, mask)
    return out


def measure(work: Path, data: Path, view: str, seed: int, config: Config) -> dict[str, Any]:
    """Train, paint, and compare what is dark, or bright, with the masks."""
    run, out, began = work / f"run-{view}-{seed}", work / f"{view}-{seed}", time.time()
    timed(["train_inpaint.py", "--data", str(data), "--base", "tiny", "--view", view, "--seed", str(seed),
           "--epochs", str(config.epochs), "--preview-every", "0", "--out", str(run)], lambda: 0)
    trained = time.time() - began
    timed(["sample.py", "--ckpt", str(run), "--images", str(data / "image/good"), "--out", str(out),
           "--classes", *DAMAGES, "--per-class", str(config.images), "--seed", str(seed), "--steps", "25"],
          lambda: 0)
    found, right = [], 0
    for row in read_rows(out / "samples.jsonl"):
        grey = read_image(out / row["file"])[..., 0]
        mask = read_mask(out / f"mask/{row['class']}/{row['number']:03}_mask.png") > 0
        there = grey < DARK if row["class"] == "spot" else grey > BRIGHT
        found.append((there & mask).sum() / max(1, (there | mask).sum()))
        right += bool(grey[mask].mean() < DARK if row["class"] == "spot" else grey[mask].mean() > BRIGHT)
    result = {"view": view, "seed": seed, "images": len(found), "iou": round(float(np.mean(found)), 3),
              "quartiles": np.percentile(found, [25, 50, 75]).round(3).tolist(),
              "over half": round(float(np.mean(np.array(found) > 0.5)), 3), "right": right,
              "training, s": round(trained)}
    if config.downstream and seed == config.seeds[0]:
        painted = tiles_of(out, work / f"tiles-{view}-{seed}")
        result["downstream"] = downstream(work / "tiles", painted, list(DAMAGES))
    return result


def main() -> None:
    """Measure each view and seed, and write the result."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.painted_views --seeds 0 1 2\n",
                   program="-m benchmarks.painted_views")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(config.keep or temporary).resolve()
        for number, (damage, level) in enumerate(DAMAGES.items()):
            data = draw(work / "boards", SHAPE, config.photos, damage, level, 100 * number)
        undamaged(data, config.photos)
        tiles_of(data, work / "tiles")
        rows = [measure(work, data, view, seed, config)
                for seed in config.seeds for view in ("whole", "close")]
    record(config.out, shape=SHAPE, photos=config.photos, epochs=config.epochs, rows=rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    errors.run(main)
