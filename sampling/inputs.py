"""What each image is conditioned on: a damage type and, by strategy, a mask and a photo to paint into."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from checkpoints.controlnet import ControlSettings
from dataset.image_files import read_image, read_levels, size_of
from dataset.layouts import is_good
from dataset.masks import FEW_CELLS
from dataset.padding import cut, padded
from dataset.paste import DoesNotFit, View, box_for, changes, make_view, paste
from runtime.errors import UserError
from runtime.files import below_here, sha256
from runtime.pictures import tensor_to_image
from runtime.seeds import numpy_rng
from sampling.drawings import Sample
from sampling.generation import Wanted
from sampling.mask_bank import MaskBank, MaskFiles

PIXELS = 1 << 27  # of all photos that are painted at once


@dataclass(frozen=True)
class Seams:
    """How the painted square goes back into the photo."""

    paste: bool = True  # only the damage, not the whole square
    match_colour: bool = False


class Input(NamedTuple):
    """What one image is conditioned on, as far as its strategy has a use for it."""

    damage: str
    number: int
    region: np.ndarray | None = None  # (R,R) in {0,1}: the mask for a ControlNet
    mask: np.ndarray | None = None  # (H,W) in {0,1}: the mask to write beside the image
    file: Path | None = None  # the photo to paint into, which may be too large to keep
    view: View | None = None  # the square of the photo that is painted
    about: dict[str, Any] = {}  # for samples.jsonl
    rejected: tuple[str, ...] = ()  # why earlier masks did not fit
    fits: bool = True  # False: no mask fits, and the image is left out
    painted: Sample | None = None  # the photo with the damage that it has already


@dataclass
class Inputs:
    """Masks and photos for (class, number) pairs, as functions of these and the seed alone.

    masks, photos: None where the strategy takes none; control: None without a ControlNet.
    """

    resolution: int
    masks: MaskBank | MaskFiles | None = None
    photos: list[Path] | None = None
    seams: Seams = Seams()
    control: ControlSettings | None = None
    view: str = "whole"  # the square that a mask is painted in: whole or close
    damages: Sequence[int] = (1, 1)  # of an image, at least and at most
    shape: list[int] = field(default_factory=list)  # [h,w] of the square's middle that is kept; []: all
    _few: set[str] = field(default_factory=set)  # masks of few latent cells, already named

    def __post_init__(self) -> None:
        """Raises UserError for numbers of damages that cannot be."""
        text = f"--damages-per-image {' '.join(map(str, self.damages))}"
        if len(self.damages) != 2 or self.damages[0] > self.damages[1]:
            raise UserError(f"{text}: give the fewest and the most, such as 1 3")
        if self.damages[1] > 1 and not isinstance(self.masks, MaskBank):
            raise UserError(f"{text}: masks of a folder are used as they are, one an image; give --masks a "
                            "dataset")

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a sample folder have in common."""
        photos = {**asdict(self.seams), "photos": content_digest(self.photos)} if self.photos else {}
        masks = {**self.masks.settings, "view": self.view} if self.masks else {}
        masks |= {"damages_per_image": list(self.damages)} if self.photos else {}
        return {**photos, **masks, **(self.control._asdict() if self.control else {})}

    def digests(self) -> dict[str, tuple[str, str]]:
        """Of each class with masks: the digest of its masks, and that of earlier versions."""
        if self.masks is None:
            return {}
        earlier = earlier_digest([*(self.photos or []), *self.masks.files()])
        names = {name: self.masks.classes if self.damages[1] > 1 else [name] for name in self.masks.classes}
        return {name: (content_digest([*self.masks.files(*used), *(file for each in used
                                                                   for file in self.masks.sources(each))]),
                       earlier) for name, used in names.items()}

    def at_once(self, batch_size: int) -> int:
        """How many images to draw at once, `batch_size` at most: of large photos fewer, to save memory."""
        largest = max((math.prod(size_of(photo)) for photo in self.photos or []), default=1)
        return max(1, min(batch_size, PIXELS // largest))

    def check(self, wanted: list[Wanted]) -> None:
        """Raises UserError, before anything is drawn, for a class of which no mask fits."""
        for damage in dict(wanted):
            numbers = [number for name, number in wanted if name == damage][:len(self.photos or [None])]
            given = (self.prepare(damage, number) for number in numbers)  # until one fits
            if not any(each.fits for each in given):
                raise UserError(self.prepare(damage, numbers[0]).rejected[0])

    def prepare(self, damage: str, number: int) -> Input:
        """What one image is conditioned on. Where a mask does not fit its photo, another one is taken."""
        if self.masks is None:
            return Input(damage, number)
        if self.photos is None and is_good(damage):
            return Input(damage, number, np.zeros((self.resolution, self.resolution), np.uint8))
        rejected: list[str] = []
        for attempt in range(self.masks.attempts(damage)):
            try:
                return self._placed(self.masks, damage, number, attempt)._replace(rejected=tuple(rejected))
            except DoesNotFit as error:
                rejected.append(str(error))
        return Input(damage, number, rejected=tuple(rejected), fits=False)

    def _placed(self, masks: MaskBank | MaskFiles, damage: str, number: int, attempt: int) -> Input:
        """One attempt of `prepare`. Raises DoesNotFit."""
        file = masks.photo_for(damage, number, self.photos, attempt) if self.photos else None
        return self.placed_on(file, read_image(file) if file else None, masks, damage, number, attempt)

    def placed_on(self, file: Path | None, photo: np.ndarray | None, masks: MaskBank | MaskFiles,
                  damage: str, number: int, attempt: int) -> Input:
        """Mask `number` of a class on the photo `file` (H,W,3), if there is one. Raises DoesNotFit."""
        placed = masks.place(damage, number, photo, attempt)
        name = below_here(placed.about["mask"])
        placed = placed._replace(mask=padded(placed.mask) if self.shape else placed.mask,
                                 about={**placed.about, "mask": name})
        box = box_for(placed.mask, self.view, self.resolution, numpy_rng(masks.seed, "view", damage, number),
                      whole=masks.whole, anywhere=photo is None)
        view = make_view(np.zeros((*placed.mask.shape, 3), np.uint8) if photo is None else photo, placed.mask,
                         box, self.resolution, name, whole=masks.whole)
        if photo is None:
            shown: np.ndarray = cut(torch.from_numpy(view.region), self.shape).numpy()
            if shown.sum() < view.region.sum():
                raise DoesNotFit(f"{name}: its damage lies outside the photo's shape, {self.shape[1]}x"
                                 f"{self.shape[0]}; give masks of photos of that shape")
            return Input(damage, number, view.region, shown, about=placed.about)
        if view.cells < FEW_CELLS and name not in self._few:
            self._few.add(name)
            tqdm.write(f"{name}: covers {view.cells} of the model's latent cells, so its damage may hardly "
                       f"show{'; --view close looks closer' if self.view == 'whole' else ''}",
                       file=sys.stderr)
        about = {"photo": below_here(str(file)), **placed.about, "box": list(view.box), "cells": view.cells}
        good = is_good(damage)
        mask = None if good else view.mask
        return Input(damage, number, view.region * np.uint8(not good), mask, file, view, about)

    def samples(self, prepared: list[Input], images: list[Tensor], before: list[Tensor]) -> list[Sample]:
        """One sample for each input, in order; images: (3,R,R) in [-1,1], those of the inputs that fit.

        before: the views after a VAE round trip, so that its blur does not count as the model's change.
        """
        images = [cut(image, self.shape) for image in images]
        turns = iter(zip(images, before or images, strict=True))
        return [self._sample(each, *map(tensor_to_image, next(turns))) if each.fits
                else Sample(None, rejected=each.rejected) for each in prepared]

    def _sample(self, given: Input, image: Image.Image, before: Image.Image) -> Sample:
        """The image itself, or the photo with the image pasted into it."""
        if given.file is None or given.view is None:
            return Sample(image, given.mask, given.about, given.rejected)
        painted = np.asarray(image)
        photo, white = read_levels(given.file)
        photo = photo if given.painted is None else np.array(given.painted.image)
        result = paste(photo, given.view, painted, seam=self.seams.paste,
                       match_colour=self.seams.match_colour, white=white)
        about = {**given.about, **changes(np.asarray(before), painted, given.view.hole)}
        return Sample(result, given.mask, about, given.rejected)


def stacked_views(given: list[Input]) -> tuple[Tensor, Tensor]:
    """Images (B,3,R,R) in [-1,1] to paint into, and their holes (B,1,R,R) in {0,1}."""
    views = [each.view for each in given if each.view is not None]
    image = torch.stack([torch.from_numpy(view.image.copy()) for view in views]).permute(0, 3, 1, 2)
    hole = torch.stack([torch.from_numpy(view.hole)[None] for view in views])
    return image.float() / 127.5 - 1, hole.float()


def content_digest(files: list[Path]) -> str:
    """16 hex digits of file names and contents, which change with any photo or mask."""
    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        digest.update(f"{file.name} {sha256(file)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def earlier_digest(files: list[Path]) -> str:
    """16 hex digits of file names and sizes, as earlier versions noted them for photos and masks together."""
    names = "".join(f"{file.name} {file.stat().st_size}\n" for file in files)
    return hashlib.blake2b(names.encode(errors="surrogateescape"), digest_size=8).hexdigest()
