"""Which images are compared with which: generated, real, and the real ones that the generator was trained
on."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints.adapter import find_adapter, read_adapter
from checkpoints.metadata import trained_with
from data import DataConfig, load_dataset
from dataset.classes import group_by_class
from dataset.image_files import read_image, size_of
from dataset.layouts import JOURNAL, Photo, find_products
from dataset.scan import scan_products
from evaluation.numbers import HELD_OUT
from runtime.errors import UserError
from runtime.files import read_rows, sha256
from runtime.suggestions import did_you_mean, same
from runtime.trusted_paths import followed

ALL = "all"  # the group of all damage types


@dataclass(frozen=True)
class ImageSet:
    """Images and their class ids (N,)."""

    photos: list[Photo]
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, chosen: np.ndarray) -> ImageSet:
        """The images at some indices, or where a mask (N,) of booleans is true."""
        places = np.arange(len(self))[chosen]
        return ImageSet([self.photos[i] for i in places], self.label[places])

    def of(self, ids: list[int]) -> ImageSet:
        """The images of some classes."""
        return self[np.isin(self.label, ids)]

    def __add__(self, other: ImageSet) -> ImageSet:
        return ImageSet(self.photos + other.photos, np.concatenate([self.label, other.label]))


@dataclass(frozen=True)
class EvaluationSets:
    """real: all of --real; reference: the generator's training images where known, else all of real;
    held_out: real images that it was certainly not trained on, or None. classes: of the real images, sorted;
    chosen: the ids of those that are evaluated; before: the images as they were drawn before some were thrown
    away, or None where none were."""

    classes: list[str]
    chosen: list[int]
    real: ImageSet
    fake: ImageSet
    reference: ImageSet
    held_out: ImageSet | None
    before: ImageSet | None = None

    def groups(self) -> dict[str, list[int]]:
        """Class ids by group: all evaluated ones together, then each alone."""
        return {ALL: self.chosen, **{self.classes[i]: [i] for i in self.chosen}}

    def unseen(self) -> dict[str, ImageSet]:
        """The row of real images that the generator was not trained on; none where these are unknown."""
        return {} if self.held_out is None else {HELD_OUT: self.held_out}

    @property
    def everything(self) -> ImageSet:
        """The generator's training images and the held-out ones."""
        return self.reference + self.held_out if self.held_out else self.reference

    @property
    def fake_size(self) -> int:
        """The shorter side of a generated image, in pixels."""
        return min(size_of(self.fake.photos[0].image))

    @property
    def training(self) -> ImageSet:
        """The reference images of the evaluated classes."""
        return self.reference.of(self.chosen)


def shows_damage(photo: Photo) -> bool:
    """Whether the photo has a mask that is not empty."""
    region = photo.region()
    return region is not None and bool(region.any())


def _undecodable(photo: Photo) -> str | None:
    """Why an image whose header is fine cannot be decoded. A PNG's checksums were verified with its
    header."""
    if photo.image.suffix.lower() != ".png":
        try:
            read_image(photo.image)
        except UserError as error:
            return str(error)
    return None


def load_photos(names: list[str], skip: bool) -> list[Photo]:
    """Readable photos. Raises UserError for the first unreadable one, unless they are to be skipped."""
    scan = scan_products(find_products(names))
    broken = {photo.image: problem for photo in scan.photos if (problem := _undecodable(photo))}
    problems = scan.problems + list(broken.values())
    if problems and not skip:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}; --skip-unreadable goes on without such files")
    for line in [f"skipped: {problem}" for problem in problems] + scan.lost + scan.notes:
        print(line, file=sys.stderr)
    return [photo for photo in scan.photos if photo.image not in broken]


def _check_products(real: list[Photo], fake: list[Photo], folder: str) -> None:
    """Raises UserError for a generated product that is not among the real ones.

    A single one on both sides is taken for the same, whatever its folder is called.
    """
    there, drawn = (list(dict.fromkeys(photo.product for photo in photos)) for photos in (real, fake))
    if len(there) == len(drawn) == 1:
        return
    if other := [name for name in drawn if name not in there]:
        raise UserError(f"{folder}: {other[0]} is not among the products of --real ({', '.join(there)}); "
                        "give its real images too, or a --fake folder that holds none of it")


def load_sets(real: list[str], fake: str, wanted: list[str], ckpt: str | None, skip: bool) -> EvaluationSets:
    """Find and check everything. Raises UserError for a class or product that is missing on one side."""
    real_photos, fake_photos = load_photos(real, skip), load_photos([fake], skip)
    there, drawn = ({photo.image.resolve() for photo in photos} for photos in (real_photos, fake_photos))
    if both := there & drawn:
        print(f"--fake {fake}: {len(both)} of its images are images of --real too, and are compared with "
              f"themselves ({min(both)})", file=sys.stderr)
    _check_products(real_photos, fake_photos, fake)
    several = len({photo.product for photo in real_photos}) > 1
    real_by_class, fake_by_class = group_by_class(real_photos, several), group_by_class(fake_photos, several)
    classes = sorted(real_by_class)
    wanted = [same(name, classes) or name for name in wanted]
    for name in [*wanted, *([] if wanted else fake_by_class)]:
        if name not in real_by_class:
            raise UserError(f"{name}: no such class in --real, which has {', '.join(classes)}"
                            f"{did_you_mean(name, classes)}")
    chosen = [i for i, name in enumerate(classes) if name in (wanted or classes)]
    for name in (classes[i] for i in chosen):
        if name not in fake_by_class:
            given = shlex.join(sorted(fake_by_class))
            raise UserError(f"{fake}: no images of {name}; draw some (where --select threw all away, with "
                            f"more --tries), or give --classes {given}")
    everything = _image_set(real_by_class, classes, list(range(len(classes))))
    generated = _image_set(fake_by_class, classes, chosen)
    reference, held_out = (everything, None) if ckpt is None else _split(Path(ckpt), Path(fake), classes,
                                                                         everything, real)
    return EvaluationSets(classes, chosen, everything, generated, reference, held_out)


def _image_set(by_class: dict[str, list[Photo]], classes: list[str], chosen: list[int]) -> ImageSet:
    return ImageSet([photo for i in chosen for photo in by_class[classes[i]]],
                    np.repeat(chosen, [len(by_class[classes[i]]) for i in chosen]))


def _split(ckpt: Path, fake: Path, classes: list[str], real: ImageSet,
           names: list[str]) -> tuple[ImageSet, ImageSet | None]:
    """The images that a checkpoint was trained on, and those of `real` (from the folders `names`) with
    another content."""
    path = find_adapter(ckpt)
    _, header = read_adapter(path)
    drawn_from = {str(row.get("checkpoint")) for row in read_rows(fake / JOURNAL)}
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
    reference = ImageSet(photos, np.array([classes.index(photo.damage) for photo in photos]))
    held_out = real[np.array([sha256(photo.image) not in seen for photo in real.photos])]
    counts = np.bincount(held_out.label, minlength=len(classes))
    if counts.max(initial=0) == 0:
        return reference, None
    if counts.min() == 0:
        raise UserError(f"--ckpt {ckpt}: was trained on all {classes[int(counts.argmin())]} images of --real "
                        "but not on all others; give held-out images of each class, or leave --ckpt out")
    return reference, held_out
