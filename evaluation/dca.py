"""Defect classification accuracy (DCA): the share of images that judges take for the damage type asked for.

Where the base that drew the images is known, the judges learn from real photos as its VAE draws them: judges
of sharp photos take softness for another damage. DCA by those of sharp photos stands below it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.layouts import Photo
from evaluation.features import read_squares
from evaluation.image_sets import ALL, EvaluationSets, ImageSet
from evaluation.judges import NEVER, Judges, fit_judges, right_share, why_none
from evaluation.measures import Rows
from evaluation.metrics import ratio
from evaluation.networks import Network
from evaluation.numbers import (
    BEFORE,
    GENERATED,
    HELD_OUT,
    RENDERED,
    Findings,
    Metric,
    Number,
    number,
    unknown,
)

ENOUGH = 0.7  # share of real images to be recognised by judges, or their other answers mean nothing
SHARP = "sharp_"  # before the row of a confusion matrix: by judges of sharp photos, below others


@dataclass(frozen=True)
class How:
    """The settings of judges and of loading images."""

    network: Network
    folds: int
    seed: int
    orientation: str
    batch_size: int
    workers: int


def measure_dca(findings: Findings, rows: Rows, sets: EvaluationSets, reconstructions: dict[Path, Photo],
                how: How) -> None:
    """Add DCA and its ratio to the ceiling, and confusion matrices. reconstructions: real photos after a pass
    through the VAE of the base that drew the images, none where it is unknown."""
    if why := why_none((sets.held_out or sets.real).label, len(sets.classes)):
        for row, group in ((row, group) for row in (*rows, HELD_OUT) for group in sets.groups()):
            findings.add(row, group, {Metric.DCA: unknown(why), Metric.DCA_RATIO: unknown(why)})
        return
    names = Metric.DCA, Metric.DCA_RATIO
    if reconstructions:
        drawn = {row: rows[row] for row in (GENERATED, BEFORE) if row in rows}
        _judge(findings, drawn, sets, reconstructions, how, RENDERED, names)
        names = Metric.SHARP_DCA, Metric.SHARP_DCA_RATIO
    _judge(findings, rows, sets, {}, how, HELD_OUT, names)


def _judge(findings: Findings, rows: Rows, sets: EvaluationSets, instead: dict[Path, Photo], how: How,
           ceiling: str, names: tuple[Metric, Metric]) -> None:
    """DCA of `rows`, and of real images that a judge did not learn from as row `ceiling`. instead: what to
    take in place of a real image."""
    judges, real, held_out = fit(sets, instead, how)
    answers = {row: (part.label, judges.of(part.photos, how.batch_size, how.workers))
               for row, part in rows.items()}
    answers[ceiling] = real.label, held_out
    prefix = SHARP if names[0] is Metric.SHARP_DCA else ""
    for row, (label, found) in answers.items():
        findings.confusions[prefix + row] = mean_confusion(label, found, len(sets.classes))
    for group, ids in sets.groups().items():
        shares = {row: right_share(found[:, np.isin(label, ids)], label[np.isin(label, ids)], judges.folds)
                  for row, (label, found) in answers.items()}
        shares = {row: share for row, share in shares.items() if share["value"] is not None}
        # What certainly shows the damage: real photos, and for judges of sharp ones those through the VAE.
        sure = {row: shares[row] for row in (ceiling, RENDERED) if row in shares}
        for row, share in shares.items():
            numbers = {names[0]: share}
            if row != ceiling:
                numbers[names[1]] = ratio_of(share, shares.get(ceiling))
                drawn = row in (GENERATED, BEFORE)
                known = {kind: of for kind, of in sure.items() if kind == ceiling or drawn}
                if why := doubt("their mixture" if group == ALL else group, known):
                    numbers = {metric: {**found, "why": why} for metric, found in numbers.items()}
            findings.add(row, group, numbers)


def fit(sets: EvaluationSets, instead: dict[Path, Photo], how: How) -> tuple[Judges, ImageSet, np.ndarray]:
    """The judges, the real images that they are tested on, and their answers (J, N) for these.

    Where the generator's training images are known, judges learn from the others and are tested on these.
    Else they learn from all real images, each leaving out a fold.
    """
    def taken(part: ImageSet) -> ImageSet:
        return ImageSet([instead.get(photo.image, photo) for photo in part.photos], part.label)

    learnt = taken(sets.held_out or sets.real)
    image = read_squares(learnt.photos, how.network.size)
    judges, answers = fit_judges(how.network, image, learnt.label, sets.classes, how.folds, how.seed,
                                 how.orientation)
    if sets.held_out is None:
        return judges, learnt, answers
    others = taken(sets.reference)
    return judges, others, judges.of(others.photos, how.batch_size, how.workers)


def mean_confusion(label: np.ndarray, answers: np.ndarray, classes: int) -> list[list[float]]:
    """Counts (class, class given), classes x classes, of images of classes (N,), the mean over those judges
    (J, N) that did not learn from an image."""
    seen, table = answers != NEVER, np.zeros((classes, classes))
    judge, image = np.nonzero(seen)
    np.add.at(table, (label[image], answers[judge, image]), 1 / seen.sum(0)[image])
    return table.tolist()


def ratio_of(share: Number, ceiling: Number | None) -> Number:
    """The ratio of two shares with their intervals."""
    if ceiling is None:
        return unknown("no real image of it is held out to test the classifier on")
    if ceiling["value"] == 0:
        return unknown("none of the held-out real images is recognised either")
    p, q = ((each["value"], each["low"], each["high"]) for each in (share, ceiling))
    return number(*ratio(p, q))


def doubt(name: str, sure: dict[str, Number]) -> str | None:
    """Why the damage type `name` cannot be judged: judges recognise too few of the images that certainly show
    it. sure: the share of such images that they recognise, by row. None where enough are recognised."""
    for row, share in sure.items():
        if share["value"] < ENOUGH:
            return (f"{name} cannot be judged: the classifiers recognise {100 * share['value']:.0f} % of "
                    f"{share['n']} images in row {row}, fewer than {100 * ENOUGH:.0f} %")
    return None
