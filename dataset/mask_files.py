"""Mask files of any make -> damage. A mask is 0 on the background; every other value marks damage.

Three kinds are read, each file by its own content:
    class numbers      few exact values, such as 0, 1, 2, or 0 and 255
    soft edges         black and white with JPEG noise, antialiasing or blur: cut at the middle
    a drawing          any colour on black, or any colour on transparent ground
Everything else (a heat map, a background that is not 0) is refused, naming the file.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used
from PIL import Image, ImageOps

from dataset.image_files import BAND, is_picture, opened, visible
from runtime.errors import UserError

LARGEST_CLASS = 31  # smaller values are class numbers, whatever lies between them
MOST_VALUES = 32  # in one mask
BLOCK = 10  # pixels from an edge that JPEG, in blocks of 8, can change; in colour, twice as many
FEW = 8  # so few values may be class numbers: as soft edges they lie within 2 pixels of an edge, or within
NOISE = 16  # levels of black or white
FLAT = 12  # levels that JPEG noise spans in 3 x 3 pixels of one colour; a soft edge spans more
DARK = 16  # a palette colour below it in each channel is black


class Mask(NamedTuple):
    """values (H,W) int32, 0 on the background; soft: whether it had values in between, which are cut."""

    values: np.ndarray
    soft: bool


def mask_parts(path: Path) -> list[Path]:
    """The files of a mask: itself, or all those in a folder of masks of one photo."""
    return list(filter(is_picture, visible(path))) if path.is_dir() else [path]


def content_of(path: Path | None) -> bytes:
    """The bytes of an image file, or of all files of a mask; of no mask, none."""
    return b"".join(part.read_bytes() for part in mask_parts(path)) if path else b""


def read_mask(path: Path) -> np.ndarray:
    """(H,W) int32 of a mask's values, see inspect_mask."""
    return inspect_mask(path).values


def inspect_mask(path: Path) -> Mask:
    """The mask in a file, or in all files of a folder joined.

    A palette image yields its indices, or its grey levels where black is not index 0; a coloured one 255
    wherever it is not black. Raises UserError where a file cannot be decoded or is no mask.
    """
    masks = []
    for file in mask_parts(path):
        with opened(file) as image:
            jpeg = image.format in ("JPEG", "MPO")
            ImageOps.exif_transpose(image, in_place=True)
            levels, coloured = _levels(image)
        masks.append(_interpret(file, levels, coloured, jpeg))
    if not masks:
        raise UserError(f"{path}: a mask folder without masks; add them or remove it")
    if len({mask.values.shape for mask in masks}) > 1:
        raise UserError(f"{path}: masks of different sizes; make them equal")
    joined = functools.reduce(np.maximum, (mask.values for mask in masks))
    return Mask(joined, any(mask.soft for mask in masks))


def _levels(image: Image.Image) -> tuple[np.ndarray, bool]:
    """(H,W) of numbers, and whether they are the brightest channel of a coloured picture."""
    if image.mode == "P":
        if not _black_elsewhere(image):
            return np.asarray(image), False
        image = image.convert("RGB")
    alpha = None
    if "A" in image.getbands():
        image = image.convert("RGBA")
        alpha = np.asarray(image)[..., 3].astype(np.int32)
    elif len(image.getbands()) > 1:
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 2:
        return values, False
    colours = values[..., :3]
    if alpha is not None and alpha.min() < alpha.max():
        if (colours == colours[:1, :1]).all():  # the shape is in alpha alone
            return alpha, False
        colours = (colours * alpha[..., None] // 255).astype(np.int32)
    grey = (colours == colours[..., :1]).all()
    return (colours[..., 0], False) if grey else (colours.max(axis=2), True)


def _black_elsewhere(image: Image.Image) -> bool:
    """Whether a palette image has black pixels, but another colour than black at index 0."""
    palette = np.array(image.getpalette()).reshape(-1, 3).max(axis=1)
    used = np.unique(np.asarray(image))
    return bool(palette[0] >= DARK and (palette[used[used < len(palette)]] < DARK).any())


def _interpret(path: Path, levels: np.ndarray, coloured: bool, jpeg: bool) -> Mask:
    """What the levels (H,W) of a file mean. Raises UserError where they are no mask."""
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high < 2**16):  # nor NaN
        raise UserError(f"{path}: holds values from {low:g} to {high:g}; save it with 8 bits, 0 where there "
                        "is no damage")
    if levels.dtype.kind == "f" and (levels != np.round(levels)).any():
        raise UserError(f"{path}: floating-point values; save it with 8 bits, 0 where there is no damage")
    levels = levels.astype(np.int32)
    counts = counts_of(levels)
    different = np.count_nonzero(counts)
    block = 2 * BLOCK if coloured else BLOCK
    if high > LARGEST_CLASS and different > (2 if jpeg else 4) and _has_soft_edges(levels, counts, block):
        return Mask((2 * levels > low + high) * np.int32(255), True)
    if jpeg and different > 2:
        raise UserError(f"{path}: JPEG has changed its class numbers; save the original as PNG, or draw it "
                        "in black and white")
    if different > MOST_VALUES:
        raise UserError(f"{path}: {different} different values, too many for class numbers, and no soft edge "
                        "of a black and white mask; save it in black and white")
    if low > 0 and different > 1:
        raise UserError(f"{path}: no pixel is 0, so all of it would be damage; give the background, now "
                        f"{'another colour' if coloured else low}, the value 0")
    return Mask((levels > 0) * np.int32(255) if coloured else levels, False)


def _has_soft_edges(levels: np.ndarray, counts: np.ndarray, block: int) -> bool:
    """Whether most pixels are black or white, and nearly all others lie within `block` pixels of an edge.

    counts: how often each level occurs. The most frequent ones below and above the middle are the two ends.
    """
    middle = (int(levels.min()) + int(levels.max())) // 2 + 1
    low, high = int(counts[:middle].argmax()), middle + int(counts[middle:].argmax())
    off = np.minimum(np.abs(levels - low), np.abs(levels - high))
    above = levels >= middle
    distance = scipy.ndimage.distance_transform_edt(above) + scipy.ndimage.distance_transform_edt(~above)
    near = distance <= max(block, min(levels.shape) // 64)
    if np.count_nonzero(counts) <= FEW:
        near &= (distance <= 2) | (off <= NOISE)
    span = scipy.ndimage.maximum_filter(levels, 3) - scipy.ndimage.minimum_filter(levels, 3)
    if (span[off > 2 * NOISE] <= FLAT).sum() > 0.4 * np.count_nonzero(off > 2 * NOISE):
        return False  # a third level, such as another class number, and no edge
    return bool(near[off > 0].mean() >= 0.95 and (off <= NOISE).mean() >= 0.5)


def region_of(values: np.ndarray, mask_value: int | None) -> np.ndarray:
    """Mask values (H,W) -> (H,W) uint8 in {0,1}: where they equal `mask_value`; None: wherever not 0."""
    return (values != 0 if mask_value is None else values == mask_value).astype(np.uint8)


def values_in(mask: np.ndarray) -> list[int]:
    """The values but 0 that occur in a mask (H,W), ascending."""
    return [int(value) for value in np.flatnonzero(counts_of(mask)) if value]


def counts_of(levels: np.ndarray) -> np.ndarray:
    """How often each level occurs in (H,W), which need not be in memory a second time."""
    most = int(levels.max()) + 1
    return np.sum([np.bincount(levels[top:top + BAND].ravel(), minlength=most)
                   for top in range(0, len(levels), BAND)], axis=0)


def likeness(path: Path) -> int:
    """How much an image looks like a mask: 2 for a few exact values, 1 for soft edges, 0 for a photo."""
    try:
        mask = inspect_mask(path)
    except UserError:
        return 0
    return 1 if mask.soft else 2 * (len(values_in(mask.values)) <= 3)
