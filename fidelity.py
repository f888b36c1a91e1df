"""Mask fidelity: does an image differ from the one it was painted on where its mask says, and nowhere else?

For images whose samples.jsonl names the `photo` they were painted on: inpainted ones, and cut and paste.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from comparison import Number, mean_of
from decode import read_image
from errors import UserError
from features import read_region
from files import read_rows
from folders import Photo
from named import followed

VISIBLE = 16  # levels of 255 that a pixel must differ by to count as changed
MOST_PSNR = 99.0  # decibels, for backgrounds that are equal bit for bit


def sources_in(folder: Path, named: list[str]) -> dict[Path, Path]:
    """Image -> the photo it was painted on, from the samples.jsonl of `folder`; empty where it names none.

    named: the folders of the command line. Raises UserError for a photo elsewhere than in these, `folder` or
    the current one.
    """
    journal = folder / "samples.jsonl"
    rows = [row for row in read_rows(journal) if row.get("photo")]
    return {(folder / str(row.get("file"))).absolute(): Path(followed(
        str(row["photo"]), journal, "run this in a folder above it", [folder, *named])) for row in rows}


def _edges(image: np.ndarray) -> np.ndarray:
    """Gradient's magnitude (H, W) of an image (H, W, 3), the mean over its channels."""
    rows, columns = np.gradient(image.astype(np.float32), axis=(0, 1))
    return np.hypot(rows, columns).mean(2)


def _seam(region: np.ndarray) -> np.ndarray:
    """The pixels (H, W) about the mask's border: those within 1/128 of the side of it."""
    reach = 2 * max(1, len(region) // 128) + 1
    grey = Image.fromarray(region * 255)
    grown, shrunk = grey.filter(ImageFilter.MaxFilter(reach)), grey.filter(ImageFilter.MinFilter(reach))
    return np.asarray(grown) != np.asarray(shrunk)


def mask_fidelity(image: np.ndarray, source: np.ndarray, region: np.ndarray) -> dict[str, float | None]:
    """image, source (H, W, 3) uint8, region (H, W) in {0, 1}.

    change_inside, change_outside: mean absolute difference in levels of 255. mask_iou: of the visibly
    changed pixels with the mask. background_psnr: dB outside the mask. seam_ratio: mean gradient along the
    mask's border over the same in the source; much above 1 is a visible seam.
    """
    change = np.abs(image.astype(np.float32) - source).mean(2)
    inside, changed, seam = region != 0, change > VISIBLE, _seam(region)
    squared = ((image.astype(np.float32) - source) ** 2).mean(2)[~inside].mean()
    before = _edges(source)[seam].mean()
    psnr = MOST_PSNR if squared == 0 else min(MOST_PSNR, 10 * np.log10(255 ** 2 / squared))
    return {"change_inside": float(change[inside].mean()), "change_outside": float(change[~inside].mean()),
            "mask_iou": float((changed & inside).sum() / (changed | inside).sum()),
            "background_psnr": float(psnr),
            "seam_ratio": float(_edges(image)[seam].mean() / before) if before else None}


def _measured(photo: Photo, source: Path) -> dict[str, float | None] | None:
    region = read_region(photo)
    if region is None or not region.any() or region.all():
        return None
    image = read_image(photo.image)
    try:
        before = read_image(source)
    except UserError as error:
        raise UserError(f"{photo.image} was painted on a photo that cannot be read: {error}") from error
    if before.shape != image.shape:
        raise UserError(f"{photo.image}: of another size than {source}, on which it was painted")
    return mask_fidelity(image, before, region)


def fidelity_numbers(photos: list[Photo], sources: dict[Path, Path]) -> list[dict[str, float | None] | None]:
    """mask_fidelity of each photo that has a mask and a source, None for the others."""
    return [_measured(photo, sources[photo.image.absolute()]) if photo.image.absolute() in sources else None
            for photo in photos]


def averaged(measured: list[dict[str, float | None] | None]) -> dict[str, Number]:
    """Means over the images that were measured, and the range of 95 % of them."""
    known = [row for row in measured if row]
    return {name: mean_of([row[name] for row in known]) for name in (known[0] if known else {})}
