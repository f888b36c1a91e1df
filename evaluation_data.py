"""Which images are compared with which: generated, real, and which real ones the generator has seen."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapter import find_adapter, read_adapter
from data import DataConfig, group_by_class, load_dataset
from decode import read_image
from errors import UserError
from files import read_rows, sha256
from folders import Photo, find_products, scan_products
from header import trained_with
from named import followed


@dataclass(frozen=True)
class Side:
    """Images and their class ids (N,)."""

    photos: list[Photo]
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, chosen: np.ndarray) -> Side:
        """The images at some indices, or where a mask (N,) of booleans is true."""
        places = np.arange(len(self))[chosen]
        return Side([self.photos[i] for i in places], self.label[places])

    def __add__(self, other: Side) -> Side:
        return Side(self.photos + other.photos, np.concatenate([self.label, other.label]))


@dataclass(frozen=True)
class Sides:
    """real: all of --real; reference: what the generator was trained on, as far as known, else all of real;
    held_out: real images that it certainly never saw, or None. classes: of the real images, sorted;
    chosen: the ids of those that are evaluated."""

    classes: list[str]
    chosen: list[int]
    real: Side
    fake: Side
    reference: Side
    held_out: Side | None


def _undecodable(photo: Photo) -> str | None:
    """What is wrong with an image whose header is fine. A PNG's checksums were verified with its header."""
    if photo.image.suffix.lower() != ".png":
        try:
            read_image(photo.image)
        except UserError as error:
            return str(error)
    return None


def load_side(names: list[str], skip: bool) -> dict[str, list[Photo]]:
    """Readable photos by class. Raises UserError for the first that is not, unless they are to be skipped."""
    scan = scan_products(find_products(names))
    broken = {photo.image: problem for photo in scan.photos if (problem := _undecodable(photo))}
    problems = scan.problems + list(broken.values())
    if problems and not skip:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; --skip-unreadable goes on without such files")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    return group_by_class([photo for photo in scan.photos if photo.image not in broken])


def _side(by_class: dict[str, list[Photo]], classes: list[str], chosen: list[int]) -> Side:
    return Side([photo for i in chosen for photo in by_class[classes[i]]],
                np.concatenate([np.full(len(by_class[classes[i]]), i) for i in chosen]))


def load_sides(real: list[str], fake: str, wanted: list[str], ckpt: str | None, skip: bool) -> Sides:
    """Find and check everything. Raises UserError for a class that is missing on one side."""
    real_photos, fake_photos = load_side(real, skip), load_side([fake], skip)
    classes = sorted(real_photos)
    for name in [*wanted, *([] if wanted else fake_photos)]:
        if name not in real_photos:
            raise UserError(f"{name}: no such class in --real, which has {', '.join(classes)}")
    chosen = [i for i, name in enumerate(classes) if name in (wanted or classes)]
    for name in (classes[i] for i in chosen):
        if name not in fake_photos:
            given = " ".join(sorted(fake_photos))
            raise UserError(f"{fake}: no images of {name}; draw some, or give --classes {given}")
    everything = _side(real_photos, classes, list(range(len(classes))))
    generated = _side(fake_photos, classes, chosen)
    if ckpt is None:
        return Sides(classes, chosen, everything, generated, everything, None)
    reference, held_out = _split(Path(ckpt), Path(fake), classes, everything, real)
    return Sides(classes, chosen, everything, generated, reference, held_out)


def _split(ckpt: Path, fake: Path, classes: list[str], real: Side,
           names: list[str]) -> tuple[Side, Side | None]:
    """The images that a checkpoint was trained on, and those of `real`, which are of `names`, with others."""
    path = find_adapter(ckpt)
    _, header = read_adapter(path)
    drawn_from = {str(row.get("checkpoint")) for row in read_rows(fake / "samples.jsonl")}
    if drawn_from and sha256(path) not in drawn_from:
        raise UserError(f"--ckpt {ckpt}: the images in {fake} were drawn from another checkpoint (see its "
                        "samples.jsonl)")
    config = trained_with(header, DataConfig)
    for name in config.data:
        followed(name, path, "run this in a folder above it, or leave --ckpt out", names)
    dataset = load_dataset(config)
    if sorted(dataset.classes) != classes:
        raise UserError(f"--ckpt {ckpt}: was trained on {', '.join(dataset.classes)}, but --real has "
                        f"{', '.join(classes)}")
    seen = {sha256(item.image) for item in dataset.items}
    photos = [Photo(item.image, item.mask, item.mask_value, "", dataset.classes[item.class_id])
              for item in dataset.items]
    reference = Side(photos, np.array([classes.index(photo.damage) for photo in photos]))
    held_out = real[np.array([sha256(photo.image) not in seen for photo in real.photos])]
    counts = np.bincount(held_out.label, minlength=len(classes))
    if counts.max(initial=0) == 0:
        return reference, None
    if counts.min() == 0:
        raise UserError(f"--ckpt {ckpt}: was trained on all {classes[int(counts.argmin())]} images of --real "
                        "but not on all others; give held-out images of each class, or leave --ckpt out")
    return reference, held_out
