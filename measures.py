"""Everything that is measured, for each set of images (a row) and for all damage types and each (a group)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from comparison import Number, compare, compare_halves, judged_numbers, number
from evaluation_data import Side, Sides
from features import FeatureStore
from fidelity import averaged, fidelity_numbers
from folders import Photo, is_good
from judge import Judges, confusion, stratified_folds, train_judges
from memorisation import Space, memorised_numbers, orientations
from metrics import mmd, rbf
from networks import Network

ALL = "all"
CROPPED = ("fid", "fid_equal", "kid")
GENERATED, HELD_OUT, COPY, PASTED = "generated", "held-out real", "copy of training", "cut and paste"
RENDERED = "through the VAE"  # the training images, as the base's VAE draws them
REAL_ONLY = "real only"  # of downstream training alone
BY_VAE = "vae_"  # before the names of numbers by judges who learnt from what the VAE draws


@dataclass
class Findings:
    """numbers[row][group][name]; what is missing and why; what a reader should know first."""

    numbers: dict[str, dict[str, dict[str, Number]]] = field(default_factory=dict)
    confusions: dict[str, list[list[int]]] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, row: str, group: str, numbers: dict[str, Number]) -> None:
        self.numbers.setdefault(row, {}).setdefault(group, {}).update(numbers)

    def get(self, row: str, group: str, name: str) -> Number | None:
        return self.numbers.get(row, {}).get(group, {}).get(name)


def groups_of(sides: Sides) -> dict[str, list[int]]:
    """Class ids by group: all evaluated ones together, then each for itself."""
    return {ALL: sides.chosen, **{sides.classes[i]: [i] for i in sides.chosen}}


def count_images(findings: Findings, rows: dict[str, Side], sides: Sides) -> None:
    """How many images each number is of."""
    held_out = {HELD_OUT: sides.held_out or sides.reference}
    for group, ids in groups_of(sides).items():
        for row, side in (rows | held_out).items():
            findings.add(row, group, {"n": number(int(np.isin(side.label, ids).sum()))})


def with_damage(side: Side, classes: list[str]) -> Side:
    """The images that have a mask, without the good ones."""
    return side[np.array([photo.mask is not None and not is_good(classes[i])
                          for photo, i in zip(side.photos, side.label, strict=True)], bool)]


def measure_distances(findings: Findings, rows: dict[str, Side], sides: Sides, store: FeatureStore, seed: int,
                      times: int, crop: bool = False) -> None:
    """Frechet distance, KID, precision and their like; with `crop`, FID and KID of squares about damage."""
    select = (lambda side: with_damage(side, sides.classes)) if crop else (lambda side: side)
    reference, rows = select(sides.reference), {row: select(side) for row, side in rows.items()}
    if sides.held_out is not None:
        rows[HELD_OUT] = select(sides.held_out)
    vectors = {row: store(side.photos, crop) for row, side in rows.items() if len(side)}
    training = store(reference.photos, crop) if len(reference) else np.zeros((0, store.network.dim))
    for group, ids in groups_of(sides).items():
        y = training[np.isin(reference.label, ids)]
        equal = min([len(y) // 2, *(int(np.isin(rows[row].label, ids).sum())
                                    for row in (GENERATED, HELD_OUT) if row in rows)])
        found = {row: compare(x[np.isin(rows[row].label, ids)], y, equal, times, (seed, group))
                 for row, x in vectors.items()}
        if sides.held_out is None:
            found[HELD_OUT] = compare_halves(y, equal, (seed, group))
        for row, numbers in found.items():
            if crop:
                numbers = {f"crop_{name}": numbers[name] for name in CROPPED if name in numbers}
            elif numbers:
                numbers["equal_n"] = number(equal)
            findings.add(row, group, numbers)


def measure_cmmd(findings: Findings, rows: dict[str, Side], sides: Sides, store: FeatureStore) -> None:
    """CMMD: unbiased MMD of CLIP embeddings."""
    training = store(sides.reference.photos)
    if sides.held_out is not None:
        rows = rows | {HELD_OUT: sides.held_out}
    for row, side in rows.items():
        vectors = store(side.photos)
        for group, ids in groups_of(sides).items():
            x, y = vectors[np.isin(side.label, ids)], training[np.isin(sides.reference.label, ids)]
            if min(len(x), len(y)) >= 3:
                findings.add(row, group, {"cmmd": number(*mmd(x, y, rbf))})


def measure_memorisation(findings: Findings, rows: dict[str, Side], sides: Sides,
                         stores: dict[str, FeatureStore]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Nearness to the training images in each space; returns the generated images' own: ratios, indices."""
    spaces = {}
    for name, store in stores.items():
        training = store(sides.reference.photos)
        held_out = None if sides.held_out is None else store(sides.held_out.photos)
        spaces[name] = Space(orientations(training) if name == "pixel" else [training], held_out)
    nearness = {row: {name: space.nearness(stores[name](side.photos)) for name, space in spaces.items()}
                for row, side in rows.items()}
    ratios = {row: {name: found[0] for name, found in by_space.items()} for row, by_space in nearness.items()}
    ratios[HELD_OUT] = {name: space.real for name, space in spaces.items()}
    labels = {row: side.label for row, side in rows.items()}
    labels[HELD_OUT] = (sides.held_out or sides.reference).label
    for group, ids in groups_of(sides).items():
        for row, ratio in ratios.items():
            findings.add(row, group, memorised_numbers(ratio, np.isin(labels[row], ids)))
    return nearness[GENERATED]


def measure_dca(findings: Findings, rows: dict[str, Side], sides: Sides, twins: dict[Path, Photo],
                network: Network, orientation: str, folds: int, epochs: int, seed: int,
                loading: tuple[int, int]) -> None:
    """DCA by judges of real photos; with twins, the photos as a VAE draws them, also by judges of these.

    loading: batch size and workers.
    """
    how = network, folds, epochs, seed, orientation
    measure_judgement(findings, rows, sides, *hire_judges(sides, *how, {}), loading)
    if twins:
        measure_judgement(findings, {GENERATED: rows[GENERATED]}, sides, *hire_judges(sides, *how, twins),
                          loading, RENDERED, BY_VAE)


def hire_judges(sides: Sides, network: Network, folds: int, epochs: int, seed: int, orientation: str,
                twins: dict[Path, Photo]) -> tuple[Judges, Side]:
    """Judges, and the real images, all unseen by the judge that saw them, that set the ceiling.

    Where it is known which real images the generator never saw, one judge learns from these alone and is
    tested on the generator's. Else folds take turns. twins: what to take in place of the real images.
    """
    if sides.held_out is None:
        real, fold = sides.real, stratified_folds(sides.real.label, sides.classes, folds, seed)
    else:
        real = sides.held_out + sides.reference
        fold = np.repeat([-1, 0], [len(sides.held_out), len(sides.reference)])
    real = Side([twins.get(photo.image, photo) for photo in real.photos], real.label)
    judges = train_judges(network, real.photos, real.label, len(sides.classes), fold, epochs, seed,
                          orientation)
    tested = fold >= 0
    return Judges(judges.models, judges.held_out[tested], judges.size), real[tested]


def measure_judgement(findings: Findings, rows: dict[str, Side], sides: Sides, judges: Judges, real: Side,
                      loading: tuple[int, int], ceiling_row: str = HELD_OUT, prefix: str = "") -> None:
    """DCA, its ratio to the ceiling (the row of `real`), confusion matrices; named with `prefix`."""
    judged = {row: (side.label, judges(side.photos, *loading)) for row, side in rows.items()}
    judged[ceiling_row] = real.label, judges.held_out
    for row, (label, taken_for) in judged.items():
        findings.confusions[prefix + row] = confusion(label, taken_for, len(sides.classes)).tolist()
        for group, ids in groups_of(sides).items():
            ceiling = (judges.held_out == real.label)[np.isin(real.label, ids)]
            numbers = judged_numbers((taken_for == label)[np.isin(label, ids)], ceiling)
            findings.add(row, group, {prefix + name: number for name, number in numbers.items()})


def measure_fidelity(findings: Findings, rows: dict[str, Side], sides: Sides,
                     sources: dict[str, dict[Path, Path]]) -> None:
    """Mask fidelity of `rows`, by the images that these were painted on."""
    for row, side in rows.items():
        measured = fidelity_numbers(side.photos, sources[row])
        for group, ids in groups_of(sides).items():
            members = np.flatnonzero(np.isin(side.label, ids))
            findings.add(row, group, averaged([measured[i] for i in members]))
