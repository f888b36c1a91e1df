"""Mask fidelity: does an image differ from the photo it was painted on inside its mask and nowhere else?

For images whose samples.jsonl names their `photo`: inpainted ones, and cut and paste.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dataset.image_files import read_image
from dataset.layouts import JOURNAL, Photo
from dataset.paste import VISIBLE
from evaluation.numbers import Metric, Number, mean_of
from runtime.errors import UserError
from runtime.files import read_rows
from runtime.trusted_paths import followed

MOST_PSNR = 99.0  # decibels, for backgrounds that are equal bit for bit
Measured = dict[Metric, float | None]


def sources_in(folder: Path, named: list[str]) -> dict[Path, Path]:
    """Image -> the photo it was painted on, from the samples.jsonl of `folder`; empty where it names none.

    named: the folders of the command line. Raises UserError for a photo outside these, `folder` and the
    current folder.
    """
    journal = folder / JOURNAL
    rows = [row for row in read_rows(journal) if row.get("photo")]
    return {(folder / str(row.get("file"))).absolute(): Path(followed(
        str(row["photo"]), journal, "run this in a folder above it", [folder, *named])) for row in rows}


def _edges(image: np.ndarray) -> np.ndarray:
    """The gradient's magnitude (H, W) of an image (H, W, 3), averaged over the channels."""
    rows, columns = np.gradient(image.astype(np.float32), axis=(0, 1))
    return np.hypot(rows, columns).mean(2)


def _seam(region: np.ndarray) -> np.ndarray:
    """The pixels (H, W) within 1/128 of the side of the mask's border."""
    reach = 2 * max(1, len(region) // 128) + 1
    grey = Image.fromarray(region * 255)
    grown, shrunk = grey.filter(ImageFilter.MaxFilter(reach)), grey.filter(ImageFilter.MinFilter(reach))
    return np.asarray(grown) != np.asarray(shrunk)


def mask_fidelity(image: np.ndarray, source: np.ndarray, region: np.ndarray) -> Measured:
    """image, source (H, W, 3) uint8, region (H, W) in {0, 1}, neither empty nor everywhere.

    CHANGE_INSIDE, CHANGE_OUTSIDE: mean absolute difference in levels of 255. MASK_IOU: of the visibly changed
    pixels with the mask. BACKGROUND_PSNR: dB outside the mask. SEAM_RATIO: mean gradient along the mask's
    border over the same in the source; much above 1 is a visible seam.
    """
    change = np.abs(image.astype(np.float32) - source).mean(2)
    inside, changed, seam = region != 0, change > VISIBLE, _seam(region)
    squared = ((image.astype(np.float32) - source) ** 2).mean(2)[~inside].mean()
    before = _edges(source)[seam].mean()
    psnr = MOST_PSNR if squared == 0 else min(MOST_PSNR, 10 * np.log10(255 ** 2 / squared))
    return {Metric.CHANGE_INSIDE: float(change[inside].mean()),
            Metric.CHANGE_OUTSIDE: float(change[~inside].mean()),
            Metric.MASK_IOU: float((changed & inside).sum() / (changed | inside).sum()),
            Metric.BACKGROUND_PSNR: float(psnr),
            Metric.SEAM_RATIO: float(_edges(image)[seam].mean() / before) if before else None}


def fidelity_of(photo: Photo, source: Path | None) -> Measured | None:
    """mask_fidelity of a photo; None without a mask, a region inside and outside it, or a source."""
    region = None if source is None else photo.region()
    if source is None or region is None or not region.any() or region.all():
        return None
    image = read_image(photo.image)
    try:
        before = read_image(source)
    except UserError as error:
        raise UserError(f"{photo.image} was painted on a photo that cannot be read: {error}") from error
    if before.shape != image.shape:
        raise UserError(f"{photo.image}: of another size than {source}, on which it was painted")
    return mask_fidelity(image, before, region)


def averaged(measured: list[Measured | None]) -> dict[Metric, Number]:
    """Means over the images that were measured, and the range of 95 % of them."""
    known = [row for row in measured if row]
    return {metric: mean_of([row[metric] for row in known], "the photos are flat along the masks' borders")
            for metric in (known[0] if known else {})}
