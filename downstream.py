"""Do generated images help? Training on real images only and on more, each tested on held-out real ones.

All arms see the same real images, take the same number of steps from the same start and are tested on the
same images, which none of them saw. With more images, half of every batch is real. The last step's weights
count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from comparison import Number, number
from evaluation_data import Side, Sides
from features import read_mask_square, read_squares
from folders import is_good
from judge import classify, fit_judge, stratified_folds
from measures import GENERATED, PASTED, REAL_ONLY, Findings, groups_of
from metrics import wilson
from networks import Network
from seeds import numpy_rng
from segmenter import SIZE, fit_segmenter, intersection_over_union

MOST = 100  # more images a class are not used
RESAMPLINGS = 1000
# Images and labels to learn from, the same in addition (or None), images and labels to test on, key of the
# randomness -> a score for each test image, NaN where there is nothing to score.
Examples = tuple[Tensor, Tensor]
Learner = Callable[[Examples, Examples | None, Examples, tuple], np.ndarray]


@dataclass(frozen=True)
class Task:
    """What is learnt: how a side becomes examples, and how these become scores."""

    name: str
    load: Callable[[Side], Examples]
    score: Learner


def classification(network: Network, classes: int, epochs: int, orientation: str) -> Task:
    """Naming the damage type. Scores: 1 for a right answer, else 0."""
    def load(side: Side) -> Examples:
        return read_squares(side.photos, network.size), torch.from_numpy(side.label)

    def score(train: Examples, extra: Examples | None, test: Examples, key: tuple) -> np.ndarray:
        model = fit_judge(network, *_joined(train, extra), classes, epochs, key, orientation,
                          _pools(train, extra))
        return (classify(model, test[0]) == test[1].numpy()).astype(float)

    return Task("accuracy", load, score)


def segmentation(epochs: int, orientation: str, device: torch.device) -> Task:
    """Finding the damage. Scores: intersection over union with the mask, NaN for images without damage."""
    def load(side: Side) -> Examples:
        masks = [read_mask_square(photo, SIZE) for photo in side.photos]
        return read_squares(side.photos, SIZE), torch.stack(masks)

    def score(train: Examples, extra: Examples | None, test: Examples, key: tuple) -> np.ndarray:
        model = fit_segmenter(*_joined(train, extra), epochs, key, orientation, device, _pools(train, extra))
        return intersection_over_union(model, *test)

    return Task("iou", load, score)


def _joined(train: Examples, extra: Examples | None) -> Examples:
    return train if extra is None else (torch.cat([train[0], extra[0]]), torch.cat([train[1], extra[1]]))


def _pools(train: Examples, extra: Examples | None) -> tuple[int, ...]:
    return (len(train[0]),) if extra is None else (len(train[0]), len(extra[0]))


def few(side: Side) -> Side:
    """At most MOST images of each class."""
    kept = [np.flatnonzero(side.label == i)[:MOST] for i in np.unique(side.label)]
    return side[np.sort(np.concatenate(kept))]


def turns(sides: Sides, folds: int, seed: int) -> list[tuple[Side, Side]]:
    """(train, test) pairs of real images: what the generator saw and what not, where known; else folds."""
    if sides.held_out is not None:
        return [(sides.reference, sides.held_out)]
    fold = stratified_folds(sides.real.label, sides.classes, folds, seed)
    return [(sides.real[fold != k], sides.real[fold == k]) for k in range(fold.max() + 1)]


def tasks_for(sides: Sides, network: Network, epochs: int, orientation: str) -> list[Task]:
    """Classification, and segmentation where every damaged image on both sides has a mask."""
    damaged = [photo for side in (sides.real, sides.reference, sides.fake)
               for photo, i in zip(side.photos, side.label, strict=True)
               if not is_good(sides.classes[i])]
    tasks = [classification(network, len(sides.classes), epochs, orientation)]
    if damaged and all(photo.mask is not None for photo in damaged):
        tasks.append(segmentation(epochs, orientation, network.device))
    return tasks


def measure_downstream(findings: Findings, sides: Sides, tasks: list[Task],
                       paste: Callable[[Side, int], Side] | None, folds: int, seeds: int, seed: int) -> None:
    """Scores of each arm and what they gain over real images only.

    paste: damage of the training images laid over their good ones, for a turn; None where there can be none.
    """
    pairs, found = turns(sides, folds, seed), {}
    trainings = len(pairs) * len(tasks) * (3 if paste else 2) * seeds
    with tqdm(total=trainings, desc="downstream", unit="training", disable=None) as bar:
        for turn, (train, test) in enumerate(pairs):
            extras = {REAL_ONLY: None, GENERATED: few(sides.fake)}
            if paste:
                extras[PASTED] = paste(train, turn)
            for task in tasks:
                real, held_out = task.load(train), task.load(test)
                for arm, side in extras.items():
                    extra, scores = None if side is None else task.load(side), []
                    for s in range(seeds):
                        scores.append(task.score(real, extra, held_out, (seed, task.name, turn, s)))
                        bar.update()
                    found.setdefault((task.name, arm), []).append(np.mean(scores, axis=0))
    _summarise(findings, sides, np.concatenate([test.label for _, test in pairs]), found, seed)


def _summarise(findings: Findings, sides: Sides, label: np.ndarray,
               found: dict[tuple[str, str], list[np.ndarray]], seed: int) -> None:
    """Scores of the test images, by task and arm and one array a turn -> numbers of each group."""
    for (task, arm), parts in found.items():
        scores, alone = np.concatenate(parts), np.concatenate(found[task, REAL_ONLY])
        for group, ids in groups_of(sides).items():
            which = np.isin(label, ids) & np.isfinite(scores)
            if which.any():
                numbers = summary(task, scores[which], alone[which], numpy_rng(seed, "downstream", group))
                findings.add(arm, group, numbers if arm != REAL_ONLY else {task: numbers[task]})


def summary(task: str, scores: np.ndarray, alone: np.ndarray, rng: np.random.Generator) -> dict[str, Number]:
    """The mean score, and its gain over training on real images only, both over the test images (N,).

    Intervals: Wilson's for a mean accuracy, else a bootstrap over test images, which are what is scarce.
    """
    def interval(values: np.ndarray) -> tuple[float, float]:
        picks = rng.integers(len(values), size=(RESAMPLINGS, len(values)))
        low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
        return float(low), float(high)

    mean = float(scores.mean())
    bounds = wilson(round(scores.sum()), len(scores)) if task == "accuracy" else interval(scores)
    return {task: number(mean, *bounds),
            f"{task}_gain": number(float((scores - alone).mean()), *interval(scores - alone))}
