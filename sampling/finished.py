"""What a sample folder gets in the end: contact sheet, gallery.html and annotations.json; and what is said of
masks that found no place."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np

from checkpoints.metadata import Header
from dataset.image_files import size_of
from dataset.layouts import is_good
from dataset.mask_files import read_mask
from runtime.files import save_image, save_rows
from sampling.coco import Annotated, coco_dataset
from sampling.contact_sheet import contact_sheet
from sampling.gallery import TrainingPhotos, write_gallery
from sampling.journal import damages_of
from sampling.sample_folder import SampleFolder


def finish(folder: SampleFolder, header: Header, classes: list[str], per_class: int) -> None:
    """Report the masks that did not fit, and write what describes the images. header: of the checkpoint."""
    _report_unplaced(folder)
    if folder.settings["layout"] == "coco":
        _annotate(folder)
    if sheet := contact_sheet(folder.shown(), classes, per_class):
        save_image(folder.grid, sheet)
    write_gallery(folder.gallery, folder.shown(), TrainingPhotos(header))


def _annotate(folder: SampleFolder) -> None:
    """Write annotations.json of every image there."""
    pictures = []
    for file, mask, row in folder.shown():
        values = read_mask(mask) if mask.exists() else np.zeros((1, 1), np.uint8)
        regions = {name: values == folder.mask_values.get(name) for name in damages_of(row)}
        pictures.append(Annotated(folder.name_of(file), size_of(file), row["class"], regions))
    save_rows(folder.annotations, [coco_dataset(pictures)])


def _report_unplaced(folder: SampleFolder) -> None:
    """Name on stderr the masks that did not fit; count the images left out, and those with too few."""
    if folder.rejected:
        reasons = list(dict.fromkeys(folder.rejected))
        print(f"{len(folder.rejected)} times a mask did not fit and another was tried: {reasons[0]}"
              + (f" (and {len(reasons) - 1} more)" if reasons[1:] else ""), file=sys.stderr)
    if folder.left_out:
        counts = ", ".join(f"{damage} {count}" for damage, count in Counter(folder.left_out).items())
        print(f"{len(folder.left_out)} images left out, as no mask fitted: {counts}", file=sys.stderr)
    fewest = folder.settings.get("damages_per_image", [1])[0]
    damaged = [row for row in folder.rows.values() if not is_good(row["class"])]
    if few := sum(len(damages_of(row)) < fewest for row in damaged):
        print(f"{few} images have fewer than {fewest} damages: no mask tried found a free place",
              file=sys.stderr)
