"""Do generated images help? Training on real images with and without them, tested on held-out real ones.

All arms have the same real images, number of steps, start and test images; no test image is trained on. With
additional images, half of every batch is real. The weights after the last step count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset.layouts import is_good
from evaluation.classifier import classify, fine_tuned
from evaluation.features import read_mask_square, read_squares
from evaluation.image_sets import ALL, EvaluationSets, ImageSet
from evaluation.judges import stratified_folds, why_none
from evaluation.metrics import difference, wilson
from evaluation.networks import Network
from evaluation.numbers import GENERATED, PASTED, REAL_ONLY, Findings, Metric, Number, number, unknown
from evaluation.segmenter import SIZE, fit_segmenter, intersection_over_union
from runtime.seeds import numpy_rng

MOST = 100  # additional images a class
RESAMPLINGS = 1000
Examples = list[Tensor]  # images, and labels or masks
# Examples to learn from, how many of these are real and how many additional, examples to test on, key of the
# randomness -> a score for each test example, NaN where there is nothing to score.
Learner = Callable[[Examples, tuple[int, ...], Examples, tuple], np.ndarray]


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt: how images of the classes `ids` become examples, and how examples become scores."""

    metric: Metric
    ids: list[int]
    load: Callable[[ImageSet], Examples]
    learn: Learner


def classification(network: Network, classes: int, epochs: int, orientation: str) -> Task:
    """Naming the damage type. Scores: 1 for a right answer, else 0."""
    def load(part: ImageSet) -> Examples:
        return [read_squares(part.photos, network.size), torch.from_numpy(part.label)]

    def learn(train: Examples, pools: tuple[int, ...], test: Examples, key: tuple) -> np.ndarray:
        model = fine_tuned(network, train[0], train[1], classes, epochs, key, orientation, pools)
        return (classify(model, test[0]) == test[1].numpy()).astype(float)

    return Task(Metric.ACCURACY, list(range(classes)), load, learn)


def segmentation(ids: list[int], epochs: int, orientation: str, device: torch.device) -> Task:
    """Finding the damage. Scores: intersection over union with the mask, NaN for images without damage."""
    def load(part: ImageSet) -> Examples:
        masks = [read_mask_square(photo, SIZE) for photo in part.photos]
        return [read_squares(part.photos, SIZE), torch.stack(masks)]

    def learn(train: Examples, pools: tuple[int, ...], test: Examples, key: tuple) -> np.ndarray:
        model = fit_segmenter(train[0], train[1], epochs, key, orientation, device, pools)
        return intersection_over_union(model, test[0], test[1])

    return Task(Metric.IOU, ids, load, learn)


def few(part: ImageSet) -> ImageSet:
    """At most MOST images of each class."""
    kept = [np.flatnonzero(part.label == i)[:MOST] for i in np.unique(part.label)]
    return part[np.sort(np.concatenate(kept))]


def turns(sets: EvaluationSets, folds: int, seed: int) -> list[tuple[ImageSet, ImageSet]]:
    """(train, test) pairs of real images: the generator's training images and the others where known; else
    folds."""
    if sets.held_out is not None:
        return [(sets.reference, sets.held_out)]
    fold = stratified_folds(sets.real.label, sets.classes, folds, seed)
    return [(sets.real[fold != k], sets.real[fold == k]) for k in range(fold.max() + 1)]


def tasks_for(sets: EvaluationSets, network: Network, epochs: int, orientation: str,
              findings: Findings) -> list[Task]:
    """Classification, and segmentation of the damage types whose every image has a mask. `findings` gets the
    reason for each that is left out."""
    tasks: list[Task] = []
    if why := why_none(sets.real.label, len(sets.classes)):
        findings.add(GENERATED, ALL, {Metric.ACCURACY: unknown(why)})
    else:
        tasks.append(classification(network, len(sets.classes), epochs, orientation))
    damages = [i for i, name in enumerate(sets.classes) if not is_good(name)]
    unmasked = {i for part in (sets.real, sets.reference, sets.fake)
                for photo, i in zip(part.photos, part.label.tolist(), strict=True)
                if photo.mask is None and i in damages}
    if unmasked:
        findings.missing["IoU of " + ", ".join(sets.classes[i] for i in sorted(unmasked))] = (
            "some of the images have no mask")
    if set(damages) & set(sets.chosen) - unmasked:
        ids = [i for i in range(len(sets.classes)) if i not in unmasked]
        tasks.append(segmentation(ids, epochs, orientation, network.device))
    return tasks


def measure_downstream(findings: Findings, sets: EvaluationSets, tasks: list[Task],
                       paste: Callable[[ImageSet, int], ImageSet] | None, folds: int, seeds: int,
                       seed: int) -> None:
    """Scores of each arm and what they gain over real images only.

    paste: damage of the training images laid over their good ones, for a turn; None where there can be none.
    """
    pairs, found = turns(sets, folds, seed) if tasks else [], dict[tuple[Task, str], list[np.ndarray]]()
    trainings = len(pairs) * len(tasks) * (3 if paste else 2) * seeds
    with tqdm(total=trainings, desc="downstream", unit="training", disable=None) as bar:
        for turn, (train, test) in enumerate(pairs):
            arms = {REAL_ONLY: [train], GENERATED: [train, few(sets.fake)]}
            if paste:
                arms[PASTED] = [train, paste(train, turn)]
            for task in tasks:
                held_out = task.load(test.of(task.ids))
                for arm, parts in arms.items():
                    loaded, scores = [task.load(part.of(task.ids)) for part in parts], []
                    joined = [torch.cat(tensors) for tensors in zip(*loaded, strict=True)]
                    pools = tuple(len(image) for image, _ in loaded)
                    for s in range(seeds):
                        scores.append(task.learn(joined, pools, held_out, (seed, task.metric.key, turn, s)))
                        bar.update()
                    found.setdefault((task, arm), []).append(np.mean(scores, axis=0))
    for (task, arm), turned in found.items():
        label = np.concatenate([test.of(task.ids).label for _, test in pairs])
        _summarise(findings, sets, task, arm, label, np.concatenate(turned),
                   np.concatenate(found[task, REAL_ONLY]), seed)


def _summarise(findings: Findings, sets: EvaluationSets, task: Task, arm: str, label: np.ndarray,
               scores: np.ndarray, alone: np.ndarray, seed: int) -> None:
    """Scores of the test images (N,) of one arm, and with real images only -> numbers of each group."""
    for group, ids in sets.groups().items():
        which = np.isin(label, ids) & np.isfinite(scores)
        if which.any():
            rng = numpy_rng(seed, "downstream", group)
            mean, gain = summary(task, scores[which], alone[which], rng)
            findings.add(arm, group, {task.metric: mean} if arm == REAL_ONLY
                         else {task.metric: mean, Metric[f"{task.metric.name}_GAIN"]: gain})


def summary(task: Task, scores: np.ndarray, alone: np.ndarray,
            rng: np.random.Generator) -> tuple[Number, Number]:
    """The mean score, and its gain over training on real images only, both over the test images (N,).

    Intervals: Wilson's for an accuracy, else a bootstrap over test images, the scarcest. A bootstrap of equal
    values has no width: then the gain of an accuracy gets its interval from Wilson's of both, and others have
    none.
    """
    def interval(values: np.ndarray) -> tuple[float, ...]:
        picks = rng.integers(len(values), size=(RESAMPLINGS, len(values)))
        low, high = np.quantile(values[picks].mean(1), [0.025, 0.975])
        return (float(low), float(high)) if np.ptp(values) else ()

    gain, n = interval(scores - alone), len(scores)
    right, right_alone = round(scores.sum()), round(alone.sum())
    bounds = wilson(right, n) if task.metric is Metric.ACCURACY else interval(scores)
    if not gain and task.metric is Metric.ACCURACY:
        gain = difference(right, n, right_alone, n)
    return number(float(scores.mean()), *bounds), number(float((scores - alone).mean()), *gain)
