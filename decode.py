"""Image and mask files of any make -> arrays; what cannot be read ends in one line that names the file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# Whatever a file is called. EPS, among others, would have Pillow start another program.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless only: JPEG invents values beside every edge


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn every failure to read `path` into a UserError that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: more than {Image.MAX_IMAGE_PIXELS // 10**6} million pixels; "
                        "make it smaller or cut it up") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, Image.UnidentifiedImageError):  # whose text only repeats the path
            reason = "damaged, or no image at all"
        raise UserError(f"{path}: cannot be read ({reason}); replace or remove it") from error


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as displayed, without decoding. A PNG's checksums are verified, so truncation shows.

    Raises UserError where the file is unreadable or absurdly large.
    """
    with _named(path), Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        if image.format == "JPEG":
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return (height, width) if turned else (width, height)
        image.verify()
        return width, height


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits; Pillow before 11.3 calls some of these plain I
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{path}: 32-bit pixels; save it with 8 or 16 bits")
        return np.repeat((values >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(f"{path}: floating-point pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def read_image(path: Path) -> np.ndarray:
    """(H,W,3) uint8. Grey becomes three equal channels, transparency becomes white, 16 bits become 8.

    A JPEG's orientation tag is applied. Raises UserError where the file cannot be decoded.
    """
    with _named(path), Image.open(path, formats=FORMATS) as image:
        if image.format == "JPEG":
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, path)


def read_mask(path: Path) -> np.ndarray:
    """(H,W) int32 of the mask's own values; 0 is background. A palette image yields its indices.

    A coloured mask yields 255 wherever any channel is not 0. Raises UserError where it cannot be decoded.
    """
    with _named(path), Image.open(path, formats=FORMATS) as image:
        values = np.asarray(image)
        if values.ndim == 3:
            values = values[..., :1 if image.mode == "LA" else 3]  # alpha says nothing about the damage
            grey = (values == values[..., :1]).all()
            values = values[..., 0] if grey else values.any(axis=2) * 255
        return values.astype(np.int32)


def region_of(values: np.ndarray, mask_value: int | None) -> np.ndarray:
    """Mask values (H,W) -> (H,W) uint8 in {0,1}: where they equal `mask_value`; None: wherever not 0."""
    return (values != 0 if mask_value is None else values == mask_value).astype(np.uint8)


def values_in(mask: np.ndarray) -> list[int]:
    """The values but 0 that occur in a mask (H,W), ascending."""
    return [int(value) for value in np.flatnonzero(np.bincount(mask.ravel())) if value]
