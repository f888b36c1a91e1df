"""Cut and paste: real damage laid over good images. The baseline that a generator has to beat.

Its images are written like generated ones: in the dataset's layout, with masks, and a samples.jsonl that
names the photo under each. So everything that is measured of generated images is measured of these.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataset.augmentation import draw_motion, prepare, square_box, warp, warp_mask
from dataset.image_files import read_image
from dataset.layouts import GOOD, JOURNAL, Photo, files_of, is_good
from dataset.paste import View, paste
from dataset.placement import Motion, move, place
from dataset.views import view_of
from evaluation.image_sets import EvaluationSets, ImageSet, shows_damage
from evaluation.out_folder import mark
from runtime.errors import UserError
from runtime.files import save_image, save_rows
from runtime.seeds import numpy_rng

MOST = 100  # images a class
TRIES = 10  # good images tried for a damage


def _square(photo: Photo, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """The photo's square (S, S, 3) and its region (S, S), both uint8; no smaller than needed."""
    image, region = read_image(photo.image), photo.region()
    region = np.zeros(image.shape[:2], np.uint8) if region is None else region
    box = square_box(image.shape, region)
    return prepare(image, box, resolution), prepare(region, box, resolution)


def cuttable(real: ImageSet, sets: EvaluationSets) -> dict[int, tuple[list[Photo], list[Photo]]]:
    """By evaluated class: the photos whose damage can be cut out, of `good` all; and the good photos of the
    same product. A class without either is left out.

    Raises UserError where there is no good image, or no such damage.
    """
    good: dict[str, list[Photo]] = {}
    for photo, name in zip(real.photos, (sets.classes[i] for i in real.label), strict=True):
        if is_good(name):
            good.setdefault(name.rpartition("/")[0], []).append(photo)
    if not good:
        raise UserError(f"there are no {GOOD} images to paste damage onto")
    photos = {i: [photo for photo in real.of([i]).photos if is_good(sets.classes[i]) or shows_damage(photo)]
              for i in sets.chosen}
    damages = [i for i in sets.chosen if not is_good(sets.classes[i])]
    if damages and not any(photos[i] for i in damages):
        raise UserError(f"no image of {sets.classes[damages[0]]} has a mask to cut the damage out with")
    return {i: (found, good[product]) for i, found in photos.items()
            if found and (product := sets.classes[i].rpartition("/")[0]) in good}


def cut_and_paste(real: ImageSet, sets: EvaluationSets, out: Path, seed: int, orientation: str) -> ImageSet:
    """As many images of each class as are generated, MOST at most, under `out`. Those of `good` are good
    ones, moved.

    A damage goes where its surroundings look like those that it had, because where it can occur is part of
    what it is; then good image and damage are moved together. One that finds no place is left out, and how
    many are is said. Image k of a class is a function of seed, class and k. Raises UserError as cuttable
    does, and leaves out the same classes.
    """
    usable, resolution = cuttable(real, sets), sets.fake_size
    mark(out)
    made, label, rows, lost = list[Photo](), list[int](), [], 0
    todo = [(i, k) for i in usable for k in range(min(len(sets.fake.of([i])), MOST))]
    for class_id, k in tqdm(todo, desc="cut and paste", unit="image", disable=None):
        name = sets.classes[class_id]
        rng = numpy_rng(seed, "cut and paste", name, k)
        damaged, good = usable[class_id]
        composed = compose(damaged[k % len(damaged)], good, resolution, orientation, rng)
        if composed is None:
            lost += 1
            continue
        image, mask, photo = composed
        files = files_of(out, name, k)
        before = out / "photo" / name / files.image.name
        save_image(before, Image.fromarray(photo))
        files.write(Image.fromarray(image), mask if mask.any() else None)
        made.append(Photo(files.image, files.mask if mask.any() else None, None, "", name))
        label.append(class_id)
        rows.append({"file": files.image.relative_to(out).as_posix(), "photo": str(before.resolve())})
    if lost:
        tqdm.write(f"cut and paste: {lost} of {len(todo)} images left out, as no place on a good image looks "
                   "like the one that the damage has", file=sys.stderr)
    save_rows(out / JOURNAL, rows)
    return ImageSet(made, np.array(label, int))


def compose(damaged: Photo, good: list[Photo], resolution: int, orientation: str,
            rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The damage of one photo on one of others: image (R, R, 3), mask (R, R) in {0, 1}, image without damage.
    None where it finds no place on those that are tried. A photo without damage: one of the others, moved."""
    square, region = _square(damaged, resolution)
    order = rng.permutation(len(good))
    under = _square(good[order[0]], resolution)[0]
    if not region.any():
        under = warp(under, draw_motion(rng, orientation, region), resolution)
        return under, np.zeros((resolution, resolution), np.uint8), under
    source, placed = view_of(square, region), None
    for k in order[:TRIES]:
        under = _square(good[k], resolution)[0]
        if placed := place(rng, source, view_of(under), orientation):
            break
    if placed is None:
        return None
    there = move(region, placed, *under.shape[:2])
    motion = draw_motion(rng, orientation, there)
    mask = warp_mask(there, motion, resolution)
    over = warp(square, _after(motion, placed, len(square), len(under)), resolution)
    below = warp(under, motion, resolution)
    view = View(below, mask, mask, 0, (0, 0, resolution), mask)
    return (np.asarray(paste(below.copy(), view, over)) if mask.any() else below), mask, below


def _after(motion: np.ndarray, placed: Motion, source: int, target: int) -> np.ndarray:
    """The matrix for `warp` that reads the damaged square, of side `source`, as it was placed on one of side
    `target` that is then read through `motion`."""
    back = np.linalg.inv(placed.linear)
    linear = target / source * back
    shift = 2 / source * back @ (target / 2 - placed.shift) - 1
    return np.column_stack([linear @ motion[:, :2], linear @ motion[:, 2] + shift])
