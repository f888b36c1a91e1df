"""image_files.py: photos are turned as EXIF says, and levels scaled alike in a whole product."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from bases import command
from PIL import Image, ImageOps
from trees import picture, save, square_mask

import data
from data import DataConfig, load_dataset
from dataset import image_files
from dataset.image_files import read_image, size_of
from dataset.mask_files import read_mask
from runtime.errors import UserError
from sampling.opening import find_photos

SHOWN = picture(0, (64, 48))
SHOWN_MASK = np.zeros((48, 64), np.uint8)
SHOWN_MASK[4:14, 6:20] = 255


def stored(values: np.ndarray, path: Path, orientation: int, form: str) -> None:
    """A file that shows `values` when it is turned as its EXIF tag says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = next(turned for method in (None, *Image.Transpose)
                 if (turned := Image.fromarray(values) if method is None
                     else Image.fromarray(values).transpose(method))
                 and np.array_equal(np.asarray(_shown(turned, exif)), values))
    path.parent.mkdir(parents=True, exist_ok=True)
    more = {"save_all": True, "append_images": [image]} if form == "MPO" else {}
    image.save(path, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}), **more)


def _shown(image: Image.Image, exif: Image.Exif) -> Image.Image:
    copy = image.copy()
    copy.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(copy)


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 mean nothing
@pytest.mark.parametrize(("form", "suffix"), [("JPEG", "jpg"), ("MPO", "jpg"), ("PNG", "png"),
                                              ("WEBP", "webp"), ("TIFF", "tif")])
def test_turned_as_exif_says(form: str, suffix: str, orientation: int, tmp_path: Path) -> None:
    photo, mask = tmp_path / f"image/spot/0.{suffix}", tmp_path / f"mask/spot/0_mask.{suffix}"
    stored(SHOWN, photo, orientation, form)
    stored(SHOWN_MASK, mask, orientation, form)
    assert size_of(photo) == size_of(mask) == (64, 48)
    assert np.abs(read_image(photo).astype(int) - SHOWN).mean() < 6
    assert ((read_mask(mask) > 0) != (SHOWN_MASK > 0)).mean() < 0.01
    found = command(data.main, "doctor", tmp_path, "--out", tmp_path / "sheet.png")
    assert "no problems found" in found.out and "64x48" in found.out, found


def test_exif_after_the_pixels_of_a_png(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    Image.fromarray(picture(0, (64, 48))).save(tmp_path / "0.png")
    before = (tmp_path / "0.png").read_bytes()
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    (tmp_path / "0.png").write_bytes(before[:-12] + chunk + before[-12:])
    assert size_of(tmp_path / "0.png") == (48, 64) and read_image(tmp_path / "0.png").shape == (64, 48, 3)


def deep(path: Path, levels: np.ndarray) -> Path:
    return save(path, levels.astype(np.uint16))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_files_are_scaled_by_the_bits_that_the_product_uses(bits: int, tmp_path: Path) -> None:
    """The bright photo lies in one class alone, and sample.py's --images names the folder of the other."""
    eight = picture(0)[..., 0]
    dark = deep(tmp_path / "part/image/good/0.png", eight.astype(int) * 2 ** (bits - 8) // 16)
    bright = deep(tmp_path / "part/image/spot/0.tif", eight.astype(int) * 2 ** (bits - 8))
    save(tmp_path / "part/mask/spot/0_mask.png", square_mask(255))
    assert (read_image(dark)[..., 0] == eight // 16).all() and (read_image(bright)[..., 1] == eight).all()
    lines = load_dataset(DataConfig([str(tmp_path / "part")], resolution=64)).warnings()
    assert len(lines) == (0 if bits == 16 else 2)
    assert all(f"read as {bits}-bit images" in line for line in lines)
    found = command(data.main, "doctor", tmp_path / "part", "--out", tmp_path / "sheet.png")
    assert found.status == 0 and all(f"note: {line}" in found.out for line in lines)


def deep_colour(path: Path, levels: np.ndarray) -> Path:
    """A PNG with 16 bits a colour, which Pillow cannot write."""
    height, width = levels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    content = b"\x89PNG\r\n\x1a\n"
    for name, chunk in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
                        (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_16_bit_colour_that_uses_fewer_bits_is_refused(tmp_path: Path) -> None:
    """Pillow reads its upper 8 bits alone: all but black where 12 bits are used."""
    eight = picture(0).astype(int)
    photo = deep_colour(tmp_path / "part/image/spot/0.png", eight * 16)
    with pytest.raises(UserError, match=f"{photo}: .* uses 12 bits, .* save it with 8 bits"):
        read_image(photo)
    assert command(data.main, "doctor", tmp_path / "part").out.count("problem: ") == 1
    deep_colour(photo, eight * 257)
    image_files._bits_below.cache_clear()  # a command reads a folder once
    assert (read_image(photo) == eight).all()


def test_a_folder_of_16_bit_photos_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As sample.py reads --images."""
    eight = picture(0)[..., 0].astype(int)
    first, second = deep(tmp_path / "a/0.png", eight), deep(tmp_path / "a/1.png", eight * 16)
    assert find_photos(str(tmp_path / "a")) == [first, second]
    assert capsys.readouterr().err == f"{tmp_path}/a: 16-bit files that use 12 bits; read as 12-bit images\n"
    assert (read_image(second)[..., 0] == eight).all() and (read_image(first)[..., 0] == eight // 16).all()
