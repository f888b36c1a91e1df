"""Image files of any make -> arrays. A file that cannot be read ends in one line that names it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from runtime.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
# By content, whatever the suffix. EPS, among others, would have Pillow start another program.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
IMAGE_FOLDERS = ("image", "test", "train", "validation")  # of a product, in any layout
DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras deliver in 16-bit files
MOST_PIXELS = Image.MAX_IMAGE_PIXELS = 200_000_000  # Pillow's own limit is 89 million
BAND = 1024  # rows that are copied at once, so that a large image is in memory once
LITTER = ("thumbs.db", "desktop.ini")


def visible(folder: Path) -> list[Path]:
    """Entries by name, without what systems leave behind: .DS_Store, ._000.png, __MACOSX, Thumbs.db."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir()
                  if not entry.name.startswith((".", "__")) and entry.name.lower() not in LITTER)


def is_picture(path: Path) -> bool:
    """Whether a path is a file (or a link to one) with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture in a folder, or one or two folders down."""
    return any(is_picture(file) for depth in ("*", "*/*", "*/*/*") for file in folder.glob(depth))


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image, its header read. Every failure in the block becomes a UserError that names `path`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Opened by name, Pillow maps a plain TIFF's pixels and forgets to turn them.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                yield image
    except (UserError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: more than {MOST_PIXELS // 10**6} million pixels; "
                        "make it smaller or cut it up") from error
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError, struct.error ...
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, Image.UnidentifiedImageError):  # its text only repeats the path
            reason = "damaged, or no image at all"
        raise UserError(f"{path}: cannot be read ({reason}); replace or remove it") from error


class Header(NamedTuple):
    """(width, height) as displayed, whether a pixel has more than 8 bits, how many images there are, of which
    the first is read (pages of a TIFF, frames of an animation), and EXIF's orientation: 1 for upright, and
    for TIFF."""

    size: tuple[int, int]
    deep: bool
    images: int
    orientation: int


def header_of(path: Path) -> Header:
    """What a file's header says, without decoding. A PNG's checksums are verified, so truncation shows.

    Raises UserError where the file is unreadable or absurdly large.
    """
    with opened(path) as image:
        (width, height), deep = image.size, image.mode.startswith("I") or _deep_colour(image)
        images = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a phone's depth map
        if (decoded := image.format == "PNG" and "exif" not in image.info
                and b"eXIf" in path.read_bytes()[-2**16:]):
            image.load()  # in a PNG, EXIF may follow the pixels
        # Formats but TIFF hold EXIF in `info`. Pillow has turned a TIFF's size; getexif would decode a PNG.
        exif = image.getexif() if "exif" in image.info else {}
        orientation = exif.get(ExifTags.Base.Orientation, 1)
        orientation = orientation if orientation in range(1, 9) else 1  # Pillow turns by no other
        if not decoded and image.format not in ("JPEG", "MPO"):
            image.verify()
        return Header((height, width) if orientation >= 5 else (width, height), deep, images, orientation)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as displayed. Raises UserError as header_of."""
    return header_of(path).size


def _deep_colour(image: Image.Image) -> bool:
    """Whether an image, not yet decoded, has 16 bits a colour, of which Pillow reads the upper 8."""
    tile = str(getattr(image, "tile", ""))  # which only an image just opened has
    return image.format in ("PNG", "TIFF") and not image.mode.startswith("I") and ";16" in tile


def _deep_levels(path: Path) -> np.ndarray:
    """(H,W) of 0 to 65535; of a colour image (H,W,channels). Raises UserError for pixels of 32 bits."""
    with opened(path) as image:
        if _deep_colour(image):
            return np.asarray(image).astype(np.int32) << 8 | 255
        values = np.asarray(ImageOps.exif_transpose(image))
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: 32-bit pixels; save it with 8 or 16 bits")
    return values


def bits_used(path: Path) -> int:
    """How many bits of a 16-bit file are used: one number for all photos of its product, or of its folder."""
    for place in list(path.absolute().parents)[:2]:
        if place.name in IMAGE_FOLDERS:
            return _bits_below(place.parent, IMAGE_FOLDERS)
    return _bits_below(path.absolute().parent, ())


@functools.cache
def _bits_below(folder: Path, children: tuple[str, ...]) -> int:
    """The bits that the largest level of all 16-bit photos needs: in `folder`, or below its `children`."""
    files = ([file for child in children for file in sorted((folder / child).rglob("*"))] if children
             else visible(folder))
    largest = 0
    for file in filter(is_picture, files):
        try:
            if header_of(file).deep:
                largest = max(largest, int(_deep_levels(file).max()))
        except UserError:  # named where the file itself is asked for
            continue
        if largest >= 2 ** DEPTHS[-2]:
            break
    return next(bits for bits in DEPTHS if largest < 2 ** bits)


def _refuse_dim_colour(path: Path, image: Image.Image) -> None:
    """Raise UserError for a colour image of 16 bits whose product uses fewer: the lower 8 cannot be read."""
    if _deep_colour(image) and (used := bits_used(path)) < 16:
        raise UserError(f"{path}: a 16-bit colour file that uses {used} bits, of which only "
                        f"the upper {used - 8} can be read; save it with 8 bits")


def depth_notes(photos: list[Path]) -> list[str]:
    """One line for each folder of 16-bit photos whose product uses fewer bits; read_image scales by these.

    Raises UserError where one is coloured.
    """
    bits = {photo.parent: bits_used(photo) for photo in photos if header_of(photo).deep}
    for photo in photos:
        with opened(photo) as image:
            _refuse_dim_colour(photo, image)
    return [f"{folder}: 16-bit files that use {used} bits; read as {used}-bit images"
            for folder, used in bits.items() if used < 16]


def read_image(path: Path) -> np.ndarray:
    """(H,W,3) uint8, turned as EXIF says. Grey becomes three equal channels, transparency becomes white,
    and levels of more than 8 bits keep the upper 8 of those that the product uses (see bits_used).

    Raises UserError where the file cannot be decoded.
    """
    with opened(path) as image:
        if image.mode.startswith("I"):  # Pillow before 11.3 calls some 16-bit files plain I
            levels = (_deep_levels(path) >> bits_used(path) - 8).astype(np.uint8)
            return np.repeat(levels[..., None], 3, axis=2)
        _refuse_dim_colour(path, image)
        if image.mode == "F":
            raise UserError(f"{path}: floating-point pixels; save it with 8 or 16 bits")
        ImageOps.exif_transpose(image, in_place=True)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, BAND):
            band = image.crop((0, top, image.width, min(top + BAND, image.height)))
            pixels[top:top + BAND] = np.asarray(band.convert("RGB"))
        return pixels


def as_rgb(levels: np.ndarray, path: Path) -> np.ndarray:
    """Levels such as read_levels reads from `path` -> as read_image reads them, (H,W,3) uint8."""
    if levels.dtype != np.uint8:
        levels = (levels >> bits_used(path) - 8).astype(np.uint8)
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


def read_levels(path: Path) -> tuple[np.ndarray, int]:
    """A photo as it is stored, turned as EXIF says, and its white level: grey of more than 8 bits as (H,W)
    uint16, all others as read_image reads them. Raises UserError as read_image."""
    with opened(path) as image:
        deep = image.mode.startswith("I")
    if not deep:
        return read_image(path), 255
    return _deep_levels(path).astype(np.uint16), 2 ** bits_used(path) - 1
