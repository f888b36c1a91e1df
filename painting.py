"""Damage painted into photos: which photo and which mask each image takes, and what becomes of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from control import Steer
from decode import IMAGE_SUFFIXES, read_image
from errors import UserError
from folders import is_good
from generation import Drawing, Generator
from header import Header
from mask_bank import MaskBank, MaskFiles, digest, open_masks
from masks import FEW_CELLS
from paste import View, changes, make_view, paste
from pictures import tensor_to_image
from sample_folder import Sample


class Task(NamedTuple):
    """One image to make: the photo, the view of it that is painted, and what is noted of both."""

    photo: np.ndarray
    view: View
    about: dict[str, Any]


@dataclass(frozen=True)
class Seams:
    """How the painted square goes back into the photo."""

    crop: bool = False  # a close view of the damage, not the whole photo
    paste: bool = True  # only the damage, not the whole square
    match_colour: bool = False


class Painting:
    """Photos and masks given out to (class, number) pairs, as functions of them and of the seed alone."""

    def __init__(self, photos: list[Path], masks: MaskBank | MaskFiles, seams: Seams, resolution: int,
                 steer: Steer | None = None) -> None:
        self.photos, self.masks, self.seams, self.resolution = photos, masks, seams, resolution
        self.steer = steer
        self._small: set[str] = set()

    @property
    def settings(self) -> dict[str, Any]:
        """What all images of a folder have in common, so that a changed input is noticed."""
        return {**vars(self.seams), "inputs": digest([*self.photos, *self.masks.all_files()]),
                **(self.steer._asdict() if self.steer else {})}

    def check(self, wanted: list[tuple[str, int]]) -> None:
        """Raises UserError, before anything is drawn, where a given mask fits no photo."""
        for damage, number in wanted:
            self.masks.photo_for(damage, number, self.photos)

    def task(self, damage: str, number: int) -> Task:
        """The photo, mask and view of one image. Says on stderr where the mask is too small to be seen."""
        file = self.masks.photo_for(damage, number, self.photos)
        photo = read_image(file)
        placed = self.masks.place(damage, number, photo)
        view = make_view(photo, placed.mask, self.resolution, placed.about["mask"], close=self.seams.crop,
                         whole=isinstance(self.masks, MaskFiles))
        if view.cells < FEW_CELLS and placed.about["mask"] not in self._small:
            self._small.add(placed.about["mask"])
            tqdm.write(f"{placed.about['mask']}: covers {view.cells} of the model's latent cells, so little "
                       f"may be seen of it{'' if self.seams.crop else '; --crop looks closer'}",
                       file=sys.stderr)
        return Task(photo, view, {"photo": str(file), **placed.about, "box": list(view.box),
                                  "cells": view.cells})

    def draw(self, generator: Generator, wanted: list[tuple[str, int]], drawing: Drawing) -> list[Sample]:
        """Paint the images called for by (class name, number)."""
        tasks = [self.task(*pair) for pair in wanted]
        image = torch.stack([torch.from_numpy(task.view.image.copy()) for task in tasks]).permute(0, 3, 1, 2)
        hole = torch.stack([torch.from_numpy(task.view.hole)[None] for task in tasks])
        control = None
        if self.steer:
            damages = [damage for damage, _ in wanted]
            masks = [task.view.region * np.uint8(not is_good(damage))
                     for task, damage in zip(tasks, damages, strict=True)]
            control = generator.steered.control(masks, damages, self.steer)
        image = image.float() / 127.5 - 1
        pairs = zip(generator.rendered(image), generator.paint(wanted, image, hole.float(), drawing, control),
                    strict=True)
        return [self._sample(task, damage, *(np.asarray(tensor_to_image(picture)) for picture in pair))
                for task, (damage, _), pair in zip(tasks, wanted, pairs, strict=True)]

    def _sample(self, task: Task, damage: str, before: np.ndarray, picture: np.ndarray) -> Sample:
        """before: the view as the VAE renders it, so that its blur does not count as the model's change."""
        result = paste(task.photo, task.view, picture, seam=self.seams.paste,
                       match_colour=self.seams.match_colour)
        mask = None if is_good(damage) else task.view.mask
        return Sample(result, mask, {**task.about, **changes(before, picture, task.view.hole)})


def open_painting(images: str | None, masks: str | None, header: Header, classes: list[str], seams: Seams,
                  seed: int, steer: Steer | None = None) -> Painting:
    """--images and --masks. Raises UserError for what is missing."""
    if images is None:
        raise UserError("--images: this checkpoint paints into photos; give a folder of undamaged ones, such "
                        "as DS-MVTec/bottle/image/good")
    return Painting(find_photos(images), open_masks(masks, header, classes, seed), seams, header.resolution,
                    steer)


def find_photos(folder: str) -> list[Path]:
    """The photos that lie in a folder, by name. Raises UserError where there are none."""
    if not Path(folder).is_dir():
        raise UserError(f"--images {folder}: no such folder; give one with photos of undamaged parts")
    photos = sorted(path for path in Path(folder).iterdir()
                    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    if not photos:
        inside = f", such as {folder}/image/good" if (Path(folder) / "image" / "good").is_dir() else ""
        raise UserError(f"--images {folder}: no photos in it; give the folder in which they lie{inside}")
    return photos
