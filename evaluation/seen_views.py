"""Real photos as a checkpoint was shown them: where it learnt from close views it draws such, which are
compared with real photos at the same scale; where it learnt from whole long photos, these are compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from checkpoints.adapter import find_adapter, read_adapter
from checkpoints.metadata import trained_with
from data import DataConfig, DefectDataset, Item
from dataset.image_files import read_image
from dataset.layouts import Photo, files_of
from dataset.padding import padded
from evaluation.image_sets import EvaluationSets, ImageSet
from evaluation.out_folder import mark
from runtime.pictures import tensor_to_image


def as_seen(sets: EvaluationSets, ckpt: str | None, out: Path) -> EvaluationSets:
    """The sets with one view of each real photo in its place, written under `out`, where the checkpoint was
    trained with --view close or mixed and draws whole pictures; with --fit pad all of each photo, real or
    generated, mirrored to a square; else the sets themselves.

    Damage painted into a photo leaves it as large as it was. Raises UserError for a mask that cannot be read.
    """
    header = read_adapter(find_adapter(Path(ckpt)))[1] if ckpt else None
    if header is None or header.strategy.inpaints or not (
            header.shape or header.config.get("view", "whole") != "whole"):
        return sets
    config = trained_with(header, DataConfig, augment=False, load_masks=True,
                          normalize_to_neg1_pos1=True)
    flags = "--fit pad" if header.shape else f"--view {config.view}"
    print(f"real photos: a view of each, as training saw them ({flags})", file=sys.stderr)

    every = sets.real + sets.everything  # a photo may be in both
    items = list({(photo.image, photo.mask_value): Item(**vars(photo), class_id=int(i))
                  for photo, i in zip(every.photos, every.label, strict=True)}.values())
    dataset = DefectDataset(items, sets.classes, config, header.resolution)
    mark(out)
    seen: dict[tuple[Path, int | None], Photo] = {}
    for number, item in enumerate(tqdm(items, desc="views", unit="image", disable=None)):
        example, mask = dataset.example(number, epoch=0), None
        if item.mask is not None:
            mask = example["mask"][0].numpy().astype(np.uint8)
        files = files_of(out, sets.classes[item.class_id], number)
        files.write(tensor_to_image(example["image"]), mask)
        seen[item.image, item.mask_value] = Photo(files.image, None if mask is None else files.mask, None,
                                                  item.product, item.damage)

    def views(part: ImageSet) -> ImageSet:
        return ImageSet([seen[photo.image, photo.mask_value] for photo in part.photos], part.label)

    if header.shape:
        sets = replace(sets, fake=_squares(sets.fake, out / "generated"),
                       before=None if sets.before is None else _squares(sets.before, out / "before"))
    return replace(sets, real=views(sets.real), reference=views(sets.reference),
                   held_out=None if sets.held_out is None else views(sets.held_out))


def _squares(part: ImageSet, out: Path) -> ImageSet:
    """Generated images and their masks, padded to squares as in training, written under `out`."""
    found = []
    for number, photo in enumerate(part.photos):
        files, region = files_of(out, photo.damage, number), photo.region()
        files.write(Image.fromarray(padded(read_image(photo.image))),
                    None if region is None else padded(region))
        found.append(replace(photo, image=files.image, mask=None if region is None else files.mask,
                             mask_value=None))
    return replace(part, photos=found)
