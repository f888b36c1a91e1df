"""Small folders in the dataset's layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """(H,W,3) uint8 for size (W,H): a coarse random texture, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))


def square_mask(value: int, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    """(H,W) uint8: `value` on a square in the middle, a sixth of the side wide and more."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[size[1] // 3:size[1] // 2, size[0] // 3:size[0] // 2] = value
    return mask


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def make_product(root: Path, damages: tuple[str, ...] = ("crack", "dent", "good"), count: int = 3,
                 seed: int = 0, value: int | None = None) -> Path:
    """image/<damage>/NNN.png with masks for all but good; mask values 1, 2, ... by damage, or `value`."""
    for index, damage in enumerate(damages):
        for number in range(count):
            save(root / "image" / damage / f"{number:03}.png", picture(1000 * seed + 100 * index + number))
            if damage != "good":
                mask = square_mask(index + 1 if value is None else value)
                save(root / "mask" / damage / f"{number:03}_mask.png", mask)
                save(root / "rbg_mask" / damage / f"{number:03}_rbg_mask.png", np.stack([mask * 80] * 3, 2))
    return root


def make_flat(root: Path, values: list[tuple[int, ...]]) -> Path:
    """image/NNN.jpg, NNN_mask.png: image i holds the classes values[i], each as a stripe of four rows."""
    for number, present in enumerate(values):
        save(root / "image" / f"{number:03}.jpg", picture(number))
        mask = np.zeros((96, 96), np.uint8)
        for stripe, value in enumerate(present):
            mask[8 * stripe:8 * stripe + 4] = value
        save(root / "mask" / f"{number:03}_mask.png", mask)
    return root


def spoil(path: Path, keep: float) -> None:
    """Cut a file short, as a broken download does."""
    data = path.read_bytes()
    path.write_bytes(data[:int(keep * len(data))])
