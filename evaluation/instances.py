"""How many damaged places an image shows: a generator may draw two chips where each photo has one.

Where all images of a damage type have masks, a place is a connected region of the mask. Otherwise it is one
of what can be seen, if that agrees with the masks of the real photos.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dataset.layouts import GOOD, Photo, is_good
from evaluation.features import read_mask_square, read_squares
from evaluation.image_sets import ALL, EvaluationSets
from evaluation.measures import Rows
from evaluation.numbers import GENERATED, HELD_OUT, Findings, Metric, Number, number, share, unknown
from evaluation.visible_damage import SIZE, Counter, calibrate, regions
from runtime.seeds import numpy_rng

RESAMPLINGS = 1000


def masks_of(photos: list[Photo]) -> np.ndarray:
    """(N, SIZE, SIZE) booleans: where the damage is. What is closer than a pixel of these is one place."""
    return np.stack([read_mask_square(photo, SIZE)[0].numpy() > 0 for photo in photos])


def numbers_of(count: np.ndarray, seed: int, group: str) -> dict[Metric, Number]:
    """The mean of counts (N,), bootstrapped unless all are equal, and the share of those above 1."""
    picks = numpy_rng(seed, "instances", group).integers(len(count), size=(RESAMPLINGS, len(count)))
    bounds = np.quantile(count[picks].mean(1), [0.025, 0.975]).tolist() if np.ptp(count) else []
    return {Metric.PLACES: number(float(count.mean()), *bounds), Metric.SEVERAL_PLACES: share(count > 1)}


def counter_of(sets: EvaluationSets, class_id: int, reconstructions: dict[Path, Photo],
               orientation: str) -> Counter | str:
    """What counts the visible damage of a type, chosen on all real photos of it, or on their reconstructions;
    or why nothing does."""
    real, product = sets.everything, sets.classes[class_id].rpartition("/")[0]
    good = [photo for photo, i in zip(real.photos, real.label, strict=True)
            if is_good(sets.classes[i]) and sets.classes[i].rpartition("/")[0] == product]
    masked = [photo for photo in real.of([class_id]).photos if photo.mask]
    if not good or not masked:
        return f"--real has no photos of it with masks, or no {GOOD} ones"
    image = [read_squares([reconstructions.get(photo.image, photo) for photo in photos], SIZE).numpy()
             for photos in (masked, good)]
    return calibrate(image[0], masks_of(masked), image[1], orientation)


def measure_instances(findings: Findings, rows: Rows, sets: EvaluationSets,
                      reconstructions: dict[Path, Photo], orientation: str, seed: int) -> None:
    """Damaged places of each image: those of its mask where all generated images of the damage type have one;
    otherwise those that can be seen, of real photos likewise."""
    damages = {sets.classes[i]: i for i in sets.chosen if not is_good(sets.classes[i])}
    counts: dict[str, list[np.ndarray]] = {}
    for group, i in damages.items():
        parts = {row: part.of([i]).photos
                 for row, part in (rows | {HELD_OUT: sets.held_out or sets.reference}).items()}
        more: dict[str, Any] = {}
        if all(photo.mask for photo in parts[GENERATED]):
            found = {row: np.array([regions(mask)[0] for mask in masks_of(photos)])
                     for row, photos in parts.items() if photos and all(photo.mask for photo in photos)}
        elif isinstance(counter := counter_of(sets, i, reconstructions, orientation), str):
            why = unknown(f"{group} cannot be counted without masks: {counter}")
            findings.add(GENERATED, group, {Metric.PLACES: why, Metric.SEVERAL_PLACES: why})
            continue
        else:
            found = {GENERATED: counter(read_squares(parts[GENERATED], SIZE).numpy()), HELD_OUT: counter.real}
            more = {"agreement": counter.agreement}
        for row, count in found.items():
            counts.setdefault(row, []).append(count)
            numbers = numbers_of(count, seed, group)
            findings.add(row, group, {metric: {**value, **more} for metric, value in numbers.items()})
    for row, each in counts.items():
        if len(each) == len(damages):
            findings.add(row, ALL, numbers_of(np.concatenate(each), seed, ALL))
