"""Cut and paste: real damage laid over good images. The baseline that a generator has to beat.

Its images are written like generated ones, in the dataset's layout with masks and a samples.jsonl that
names the photo under each, so that everything that is measured of generated images is measured of these.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from augmentation import draw_motion, prepare, square_box, warp
from decode import read_image
from errors import UserError
from evaluation_data import Side
from features import read_region
from files import save_image, save_rows
from folders import GOOD, Photo, is_good
from paste import View, paste
from seeds import numpy_rng

MOST = 100  # images a class


def _square(photo: Photo, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo's square (S, S, 3) and its region (S, S), both uint8; no smaller than needed."""
    image, region = read_image(photo.image), read_region(photo)
    region = np.zeros(image.shape[:2], np.uint8) if region is None else region
    box = square_box(*image.shape[:2], region)
    return prepare(image, box, resolution), prepare(region, box, resolution)


def _check(real: Side, classes: list[str], wanted: dict[int, int]) -> None:
    """Raises UserError where there is no good image, or a damage without masks."""
    if not any(is_good(classes[i]) for i in real.label):
        raise UserError(f"there are no {GOOD} images to paste damage onto")
    for photo, i in zip(real.photos, real.label, strict=True):
        if i in wanted and not is_good(classes[i]) and photo.mask is None:
            raise UserError(f"{photo.image} has no mask to cut the damage out with")


def cut_and_paste(real: Side, classes: list[str], counts: dict[int, int], resolution: int, out: Path,
                  seed: int, orientation: str) -> Side:
    """counts[class id] images of each class, MOST at most, under `out`. Those of `good` are good ones, moved.

    A damage keeps its place on the object, for where it can occur is part of what it is; good image and
    damage are moved together. Image k of a class is a function of seed, class and k. Raises UserError as
    _check does.
    """
    _check(real, classes, counts)
    good = real[np.array([is_good(classes[i]) for i in real.label])].photos
    made, rows = [], []
    todo = [(i, k) for i, count in counts.items() for k in range(min(count, MOST))]
    for class_id, k in tqdm(todo, desc="cut and paste", unit="image", disable=None):
        rng = numpy_rng(seed, "cut and paste", classes[class_id], k)
        damaged = real[real.label == class_id].photos
        photos = damaged[k % len(damaged)], good[int(rng.integers(len(good)))]
        image, mask, photo = compose(*photos, resolution, orientation, rng)
        *product, damage = classes[class_id].split("/")
        folder, name = out.joinpath(*product), f"{damage}/{k:03d}"
        paths = [folder / "image" / f"{name}.png", folder / "photo" / f"{name}.png"]
        files = dict(zip(paths, (image, photo), strict=True))
        if mask.any():
            paths.append(folder / "mask" / f"{name}_mask.png")
            files[paths[-1]] = mask * 255
        for path, values in files.items():
            save_image(path, Image.fromarray(values))
        made.append(Photo(paths[0], paths[2] if mask.any() else None, None, "", classes[class_id]))
        rows.append({"file": paths[0].relative_to(out).as_posix(), "photo": str(paths[1].resolve())})
    save_rows(out / "samples.jsonl", rows)
    return Side(made, np.array([i for i, _ in todo]))


def compose(damaged: Photo, good: Photo, resolution: int, orientation: str,
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The damage of one photo on another: image (R, R, 3), mask (R, R) in {0, 1}, image without damage."""
    square, region = _square(damaged, resolution)
    motion = draw_motion(rng, orientation, region)
    under, _ = warp(_square(good, resolution)[0], None, motion, resolution)
    over, mask = warp(square, region, motion, resolution)
    view = View(under, mask, mask, 0, (0, 0, resolution), mask)
    return np.asarray(paste(under, view, over)) if mask.any() else under, mask, under
