"""mask_files.py: soft, palette, alpha and drawn masks are read right; what is no mask is refused by name."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from bases import command
from PIL import Image, ImageFilter
from trees import make_product, picture, save, square_mask

import data
from data import DataConfig, DefectDataset, load_dataset
from dataset.mask_files import inspect_mask, read_mask
from runtime.errors import UserError

SPOT = ((np.mgrid[:96, :96] - 40.3) ** 2).sum(axis=0) < 12**2  # a disc


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint8))


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def palette(indices: np.ndarray, *colours: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(sum(colours, ()))
    return image


def layers(colours: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha * 255]).astype(np.uint8))


def coloured(damage: tuple[int, int, int], ground: tuple[int, int, int]) -> np.ndarray:
    return np.where(SPOT[..., None], damage, ground)


def region(image: Image.Image, folder: Path, suffix: str = ".png") -> np.ndarray:
    image.save(folder / f"mask{suffix}")
    return read_mask(folder / f"mask{suffix}") > 0


WHITE = grey(SPOT * 255)
LARGE = grey(np.kron(SPOT, np.ones((4, 4))) * 255)
BLURRED = np.asarray(WHITE.filter(ImageFilter.GaussianBlur(1.5)))
SOFT = {
    **{f"jpeg {quality}": through_jpeg(WHITE, quality) for quality in (30, 75, 95)},
    "coloured jpeg": through_jpeg(Image.fromarray(coloured((255, 0, 0), (0, 0, 0)).astype(np.uint8)), 80),
    "antialiased": LARGE.resize((96, 96), Image.Resampling.BICUBIC),
    "antialiased in 2x2": LARGE.resize((192, 192)).reduce(2),
    "blurred": grey(BLURRED),
    "16 bits": Image.fromarray(BLURRED.astype(np.uint16) * 257),
    "transparent": layers(coloured((255, 255, 255), (255, 255, 255)), BLURRED / 255),
}


@pytest.mark.parametrize("kind", SOFT)
def test_soft_masks_are_cut_at_the_middle(kind: str, tmp_path: Path) -> None:
    found = region(SOFT[kind], tmp_path)
    assert abs(int(found.sum()) - SPOT.sum()) <= 0.03 * SPOT.sum()
    assert (found != SPOT).sum() < 0.08 * SPOT.sum()


def test_a_jpeg_file_is_a_mask_too(tmp_path: Path) -> None:
    WHITE.save(tmp_path / "mask.jpg")
    assert abs(int((read_mask(tmp_path / "mask.jpg") > 0).sum()) - SPOT.sum()) <= 0.03 * SPOT.sum()


BLACK, RED = (0, 0, 0), (200, 0, 0)
READ = {
    "palette, white first": palette(~SPOT, (255, 255, 255), BLACK),
    "palette, red first": palette(~SPOT, RED, BLACK),
    "palette of class numbers": palette(SPOT * 3, BLACK, RED, RED, (128, 128, 0)),
    "palette without colours": palette(SPOT * 2, BLACK, BLACK, BLACK),
    "shape in alpha, all white": layers(coloured((255,) * 3, (255,) * 3), SPOT),
    "shape in alpha, all black": layers(coloured(BLACK, BLACK), SPOT),
    "red on transparent white": layers(coloured(RED, (255, 255, 255)), SPOT),
    "opaque": layers(coloured((255,) * 3, BLACK), np.ones_like(SPOT)),
    "grey and alpha": Image.merge("LA", [grey(SPOT * 255), grey(np.full_like(SPOT, 255, np.uint8))]),
    "red on black": Image.fromarray(coloured(RED, BLACK).astype(np.uint8)),
    "one bit": Image.fromarray(SPOT),
}


@pytest.mark.parametrize("kind", READ)
def test_palette_alpha_and_colour(kind: str, tmp_path: Path) -> None:
    assert (region(READ[kind], tmp_path) == SPOT).all()


def levels(*values: int) -> np.ndarray:
    """Stripes of these values on 0."""
    mask = np.zeros((96, 96), np.uint16)
    for number, value in enumerate(values):
        mask[4 + 8 * number:8 + 8 * number, 10:80] = value
    return mask


@pytest.mark.parametrize("values", [(1, 2, 3, 4, 5, 6, 7), (1, 2, 3, 4, 5, 255), (200,), (64, 128, 191, 255),
                                    (1, 300), (40, 80, 120, 160, 200, 240)])
def test_class_numbers_stay_exact(values: tuple[int, ...], tmp_path: Path) -> None:
    file = save(tmp_path / "mask.png", levels(*values))
    assert (read_mask(file) == levels(*values)).all() and not inspect_mask(file).soft


RAMP = np.add.outer(np.arange(96), np.arange(96)).astype(np.uint8)
REFUSED = {
    "heat map": (grey(RAMP), ".png", "different values"),
    "background 1": (grey(SPOT + 1), ".png", "no pixel is 0"),
    "background 255": (Image.fromarray(coloured(RED, (255,) * 3).astype(np.uint8)), ".png", "no pixel is 0"),
    "negative": (Image.fromarray(SPOT.astype(np.int32) - 1), ".tif", "from -1 to 0"),
    "huge": (Image.fromarray(SPOT.astype(np.int32) * 2**30), ".tif", "1.07374e+09"),
    "fractions": (Image.fromarray(SPOT.astype(np.float32) / 2), ".tif", "floating-point"),
    "not a number": (Image.fromarray(np.where(SPOT, np.nan, 0).astype(np.float32)), ".tif", "from nan"),
    "class numbers through JPEG": (through_jpeg(grey(levels(9, 20)), 75), ".png", None),
    "JPEG of class numbers": (grey(levels(9, 20)), ".jpg", "JPEG has changed"),
    "JPEG of a class at half of another": (grey(levels(60, 120)), ".jpg", "JPEG has changed"),
    "JPEG of a class at half of white": (grey(levels(128, 255)), ".jpg", "JPEG has changed"),
}


@pytest.mark.parametrize("kind", [kind for kind, (_, _, text) in REFUSED.items() if text])
def test_what_is_no_mask_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    """By the doctor in one line, and before training."""
    image, suffix, text = REFUSED[kind]
    part = make_product(tmp_path / "part", ("crack",))
    (part / "mask/crack/001_mask.png").unlink()
    image.save(part / f"mask/crack/001_mask{suffix}")
    found = command(data.main, "doctor", part, "--out", tmp_path / "sheet.png")
    [problem] = [line for line in found.out.splitlines() if line.startswith("problem: ")]
    assert found.status == 1 and f"001_mask{suffix}: " in problem and text in problem
    dataset = load(part, load_masks=True)
    assert sum(f"001_mask{suffix}: " in line for line in dataset.warnings()) == 1
    with pytest.raises(UserError, match=f"001_mask\\{suffix}: "):
        dataset.preload()


def load(*folders: Path, **options: object) -> DefectDataset:
    names = [str(folder) for folder in folders]
    return load_dataset(DataConfig(names, resolution=192, augment=False, **options))


def test_soft_masks_are_said_once(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", ("crack", "good"), value=255)
    assert load(part).warnings() == []
    for file in (part / "mask/crack").iterdir():
        through_jpeg(WHITE, 75).save(file)
    [line] = load(part).warnings()
    assert "000_mask.png and 2 more masks: values between black and white" in line
    found = command(data.main, "doctor", part, "--out", tmp_path / "sheet.png")
    assert found.status == 0 and f"note: {line}" in found.out


def test_a_flat_folder_of_blurred_masks_is_one_class(tmp_path: Path) -> None:
    for number, width in enumerate((6, 8, 10)):
        save(tmp_path / f"image/{number}.png", picture(number))
        mask = np.zeros((96, 96), np.uint8)
        mask[30:30 + width, 20:60] = 255
        (tmp_path / "mask").mkdir(exist_ok=True)
        grey(mask).filter(ImageFilter.GaussianBlur(3)).save(tmp_path / f"mask/{number}_mask.png")
    assert load(tmp_path).summary() == "3 images: defect_255 3"


def test_several_masks_of_a_photo_are_joined(tmp_path: Path) -> None:
    part = make_product(tmp_path / "part", ("crack",))
    (part / "mask/crack/001_mask.png").unlink()
    for number in range(2):
        mask = np.zeros((96, 96), np.uint8)
        mask[10:20, 10 + 40 * number:20 + 40 * number] = 255
        save(part / f"mask/crack/001/{number:03d}.png", mask)
    assert load(part, load_masks=True).example(1, 0)["mask"].sum() == 2 * 20**2
    save(part / "mask/crack/001/002.png", square_mask(255, (90, 96)))
    with pytest.raises(UserError, match=r"001/002\.png: 90x96"):
        load(part)
