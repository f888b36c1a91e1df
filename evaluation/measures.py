"""What is measured of each set of images (a row), over all damage types together and for each (a group)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dataset.layouts import is_good
from evaluation.comparison import ALL_DISTANCES, compare, compare_halves, incomparable
from evaluation.features import FeatureStore
from evaluation.fidelity import averaged, fidelity_of
from evaluation.image_sets import EvaluationSets, ImageSet, shows_damage
from evaluation.memorisation import Space, memorised_numbers, orientations
from evaluation.metrics import mmd, rbf
from evaluation.numbers import GENERATED, HELD_OUT, Findings, Metric, number, unknown

CROPPED = {Metric[name]: Metric[f"CROP_{name}"] for name in ("FID", "FID_EQUAL", "KID")}
Rows = dict[str, ImageSet]


def count_images(findings: Findings, rows: Rows, sets: EvaluationSets) -> None:
    """How many images each row has."""
    for group, ids in sets.groups().items():
        for row, part in (rows | {HELD_OUT: sets.held_out or sets.reference}).items():
            findings.add(row, group, {Metric.N: number(len(part.of(ids)))})


def with_damage(part: ImageSet, classes: list[str]) -> ImageSet:
    """The images whose mask shows damage, without the good ones."""
    return part[np.array([not is_good(classes[i]) and shows_damage(photo)
                          for photo, i in zip(part.photos, part.label, strict=True)], bool)]


def _against_training(rows: Rows, reference: ImageSet, sets: EvaluationSets, store: FeatureStore,
                      crop: bool = False) -> Iterator[tuple[str, str, np.ndarray, np.ndarray, str | None]]:
    """(row, group, x, y, why): features of a row's images and of the training images; why they cannot be
    compared, where one side lacks a damage type of the group."""
    training = store(reference.photos, crop) if len(reference) else np.zeros((0, store.network.dim))
    for row, part in rows.items():
        vectors = store(part.photos, crop) if len(part) else training[:0]
        for group, ids in sets.groups().items():
            x_in, y_in = np.isin(part.label, ids), np.isin(reference.label, ids)
            if x_in.any():
                lone = sorted(set(part.label[x_in]) ^ set(reference.label[y_in]))
                why = f"one side has no images {'with masks ' if crop else ''}of " + ", ".join(
                    sets.classes[i] for i in lone)
                yield row, group, vectors[x_in], training[y_in], why if lone else None


def measure_distances(findings: Findings, rows: Rows, sets: EvaluationSets, store: FeatureStore, seed: int,
                      times: int, crop: bool = False) -> None:
    """Frechet distance, KID, precision and their like; with `crop`, FID and KID of squares around damage."""
    def select(part: ImageSet) -> ImageSet:
        return with_damage(part, sets.classes) if crop else part

    reference = select(sets.reference)
    rows = {row: select(part) for row, part in (rows | sets.unseen()).items()}
    counted = [rows[row] for row in (GENERATED, HELD_OUT) if row in rows]
    equal = {group: min([len(reference.of(ids)) // 2, *(len(part.of(ids)) for part in counted)])
             for group, ids in sets.groups().items()}
    found = [(row, group, dict.fromkeys(ALL_DISTANCES, unknown(why)) if why
              else compare(x, y, equal[group], times, (seed, group)))
             for row, group, x, y, why in _against_training(rows, reference, sets, store, crop)]
    if sets.held_out is None:
        found += [(HELD_OUT, group, compare_halves(y, equal[group], (seed, group)))
                  for _, group, y, _, _ in _against_training({HELD_OUT: reference}, reference, sets, store,
                                                             crop)]
    for row, group, numbers in found:
        findings.add(row, group, {CROPPED[metric]: numbers[metric] for metric in CROPPED} if crop
                     else numbers | {Metric.EQUAL_N: number(equal[group])})


def measure_cmmd(findings: Findings, rows: Rows, sets: EvaluationSets, store: FeatureStore) -> None:
    """CMMD: unbiased MMD of CLIP embeddings."""
    for row, group, x, y, why in _against_training(rows | sets.unseen(), sets.reference, sets, store):
        why = why or incomparable(x, y)
        findings.add(row, group, {Metric.CMMD: unknown(why) if why else number(*mmd(x, y, rbf))})


def measure_memorisation(findings: Findings, rows: Rows, sets: EvaluationSets,
                         stores: dict[str, FeatureStore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Nearness to the training images in each space; returns that of the generated images: ratios,
    indices."""
    spaces = {}
    for name, store in stores.items():
        training = store(sets.reference.photos)
        held_out = None if sets.held_out is None else store(sets.held_out.photos)
        spaces[name] = Space(orientations(training) if name == "pixel" else [training], held_out)
    nearness = {row: {name: space.nearness(stores[name](part.photos)) for name, space in spaces.items()}
                for row, part in rows.items()}
    ratios = {row: {name: found[0] for name, found in by_space.items()} for row, by_space in nearness.items()}
    ratios[HELD_OUT] = {name: space.real for name, space in spaces.items()}
    labels = {row: part.label for row, part in (rows | {HELD_OUT: sets.held_out or sets.reference}).items()}
    for group, ids in sets.groups().items():
        for row, ratio in ratios.items():
            findings.add(row, group, memorised_numbers(ratio, np.isin(labels[row], ids)))
    return nearness[GENERATED]


def measure_fidelity(findings: Findings, rows: Rows, sets: EvaluationSets,
                     sources: dict[str, dict[Path, Path]]) -> None:
    """Mask fidelity of the rows that have sources: by image, the photo that it was painted on."""
    for row, by_image in sources.items():
        measured = [fidelity_of(photo, by_image.get(photo.image.absolute())) for photo in rows[row].photos]
        for group, ids in sets.groups().items():
            members = np.flatnonzero(np.isin(rows[row].label, ids))
            findings.add(row, group, averaged([measured[i] for i in members]))
