"""A sample folder of which some images were thrown away, by sample.py --select or by a person with --reject:
what was lost, what chose, and the images as they were first drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset.layouts import JOURNAL, REJECTED, Photo
from evaluation.image_sets import EvaluationSets, ImageSet
from evaluation.networks import Network
from evaluation.numbers import BEFORE, Findings
from runtime.errors import UserError
from runtime.files import below_here, read_rows


def thrown_away(fake: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of the images that were drawn and are not in `fake`, and their rows."""
    whole = fake.resolve()  # the second place is MVTec AD's layout
    places = fake / REJECTED, Path(below_here(whole.with_name(f"{whole.name}-{REJECTED}")))
    found = [(place, rows) for place in places if (rows := read_rows(place / JOURNAL))]
    return found[0] if found else (places[0], [])


def _evaluated(rows: Iterable[dict[str, Any]], sets: EvaluationSets) -> list[dict[str, Any]]:
    """The rows of images whose class is evaluated."""
    return [row for row in rows if row.get("class") in {sets.classes[i] for i in sets.chosen}]


def with_before(sets: EvaluationSets, fake: Path, findings: Findings) -> EvaluationSets:
    """The sets with the images before selection; where these are not there, `findings` says why."""
    try:
        return replace(sets, before=_before_selection(sets, fake))
    except UserError as error:
        findings.missing[BEFORE] = str(error)
        return sets


def _before_selection(sets: EvaluationSets, fake: Path) -> ImageSet | None:
    """The first drawing of every image, kept or not, of the evaluated classes; None where none was thrown
    away. Raises UserError where an image that was thrown away is not there any more."""
    aside, rows = thrown_away(fake)
    if not (gone := _evaluated(rows, sets)):
        return None
    first = [row for row in gone if not row.get("redraw")]
    photos, label = [], []
    for row in first:
        stem = aside.joinpath(*row["class"].split("/"), f"{Path(row['file']).stem}-0")
        image, mask = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}_mask.png")
        if not image.exists():
            raise UserError(f"{image}: was thrown away and is not there any more")
        photos.append(Photo(image, mask if mask.exists() else None, None, "", row["class"]))
        label.append(sets.classes.index(row["class"]))
    redrawn = {(fake / row["file"]).absolute() for row in first}
    kept = sets.fake[np.array([photo.image.absolute() not in redrawn for photo in sets.fake.photos], bool)]
    return kept + ImageSet(photos, np.array(label, int))


def about_selection(sets: EvaluationSets, fake: Path, networks: Iterable[Network]) -> list[str]:
    """What a reader must know of images that were chosen."""
    kept, gone = (_evaluated(rows, sets) for rows in (read_rows(fake / JOURNAL), thrown_away(fake)[1]))
    found = []
    by_select = [row for row in gone if "failed" in row]
    for some, what in ((by_select, "thrown away (sample.py --select)"),
                       ([row for row in gone if "failed" not in row], "rejected (sample.py --reject)")):
        if some:
            found.append(f"{len(some)} of {len(kept) + len(gone)} drawn images were {what}. The numbers are "
                         "of what was kept, not of the generator: see row before selection.")
    selectors = {str(row["selector"]).split(" ")[0] for row in (*kept, *gone) if row.get("selector")}
    for name in sorted(selectors & {network.name for network in networks}):
        found.append(f"{name} selected these images, and measures them here too, "
                     + ("with classifiers of photos that selection did not see; but what its features miss, "
                        "neither finds. Measure" if sets.held_out else
                        "with classifiers that may have learnt from the same photos: DCA then says how well "
                        "the images fit their own selection. Train on a part of the photos and give --ckpt, "
                        "or measure") + " with another network: --judge, --features.")
    return found
