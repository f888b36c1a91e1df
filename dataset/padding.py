"""--fit pad: a long photo whole in the model's square. Above and below it, or beside it, it is mirrored.

The mirror goes on as the photo ends, so there is no edge to learn, and the loss leaves out the latent cells
that show nothing but mirror. Of what is drawn, the same middle of the square is kept.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from dataset.augmentation import warp_mask
from dataset.image_files import size_of
from dataset.layouts import Photo
from dataset.masks import CELL, latent_mask
from runtime.errors import UserError

FITS = ("crop", "pad")
STEP = 2 * CELL  # of the kept middle, which thus consists of whole latent cells


def padded(values: np.ndarray) -> np.ndarray:
    """(S,S,..), S the longer side, with the values in its middle: of an image (H,W,3), mirrored around it, or
    of a mask (H,W), which has nothing around it."""
    side = max(values.shape[:2])
    widths = [((side - length) // 2, side - length - (side - length) // 2) for length in values.shape[:2]]
    return (np.pad(values, [*widths, (0, 0)], mode="symmetric") if values.ndim == 3
            else np.pad(values, widths))


def slimness(photo: Photo) -> float:
    """The shorter side of a photo as a share of the longer one."""
    size = size_of(photo.image)
    return min(size) / max(size)


def own_cells(photo: Photo, motion: np.ndarray, resolution: int) -> Tensor:
    """(1,R/8,R/8) float32 in {0,1}: which latent cells show anything of a padded photo, moved by `motion`."""
    width, height = size_of(photo.image)
    scale = resolution / max(width, height)
    there = padded(np.ones((max(1, round(height * scale)), max(1, round(width * scale))), np.uint8))
    return latent_mask(from_numpy(warp_mask(there, motion, resolution))[None].float())


def kept(photos: list[Photo], resolution: int) -> list[int]:
    """[h,w] of the middle of the square that holds all of each photo: whole latent cells, in pixels.

    Raises UserError where some photos are wide and others high, so that it would be the whole square.
    """
    sizes = {photo.image: size_of(photo.image) for photo in photos}
    wide = next((file for file, (width, height) in sizes.items() if width > height), None)
    high = next((file for file, (width, height) in sizes.items() if width < height), None)
    if wide and high:
        raise UserError(f"--fit pad: {wide} is wide and {high} is high; turn all photos the same way")
    slim = max(min(size) / max(size) for size in sizes.values())
    short = min(resolution, STEP * -int(-slim * resolution // STEP))
    return [resolution, short] if high else [short, resolution]


def cut(image: Tensor, shape: list[int]) -> Tensor:
    """The middle [h,w] of images (..,R,R); all of them where `shape` is empty."""
    if not shape:
        return image
    top, left = ((length - size) // 2 for length, size in zip(image.shape[-2:], shape, strict=True))
    return image[..., top:top + shape[0], left:left + shape[1]]
