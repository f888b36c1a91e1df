"""Judges: classifiers that learnt from real photos and say which damage type an image shows.

A judge is a linear layer on features of a frozen network: the mean and the maximum of each channel at strides
8 and 16, whose maps tell defects better than the last one (Roth et al. 2022, 2106.08265). How it learns was
chosen by measurement on held-out photos (benchmarks/judges.py). There is one for each fold of each of several
random divisions into folds, and none judges a photo that it learnt from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.layouts import Photo
from evaluation.features import Squares
from evaluation.metrics import wilson
from evaluation.networks import Network
from evaluation.numbers import Number, number, unknown
from runtime.seeds import numpy_rng

DIVISIONS = 3  # into folds
DECAY = 1e-3  # of the weights; ten times more or less moves accuracy by two points at most
NEVER = -1  # in place of a class: the judge learnt from this photo


def why_none(label: np.ndarray, classes: int) -> str | None:
    """Why images of classes (N,) make no judge that can be tested; None where they do."""
    if classes < 2:
        return "there is one damage type, so every answer would be right"
    if np.bincount(label, minlength=classes).max() < 2:
        return "a classifier needs two real images of a type, one to learn from and one to be tested on"
    return None


def stratified_folds(label: np.ndarray, names: list[str], count: int, *key: int) -> np.ndarray:
    """A fold (N,) for each image, every class spread evenly over at most `count` folds.

    The only image of a class gets -1: it is learnt from and never tested. key: of the randomness.
    """
    sizes = np.bincount(label, minlength=len(names))
    count, fold = min([count, *(size for size in sizes.tolist() if size > 1)]), np.full(len(label), -1)
    for class_id in np.flatnonzero(sizes > 1):
        members = np.flatnonzero(label == class_id)
        order = numpy_rng(*key, "folds", int(class_id)).permutation(members)
        fold[order] = np.arange(len(members)) % count
    return fold


@torch.no_grad()
def judge_features(network: Network, image: Tensor, orientation: str) -> Tensor:
    """(B, 3, S, S) in [-1, 1] -> (V, B, dim), of the images as they are and, with orientation "any", turned
    by a quarter."""
    views = [image, image.rot90(1, (2, 3))] if orientation == "any" else [image]
    return torch.stack([torch.cat([network.maps(part.to(network.device)).float().cpu()
                                   for part in view.split(16)]) for view in views])


def fit_linear(features: Tensor, blocks: tuple[int, ...], label: Tensor,
               classes: int) -> tuple[Tensor, Tensor]:
    """Logistic regression of classes (N,) on features (N, dim): weight (classes, dim) and bias (classes,).

    The features are standardised, and each block of them (all that come from one map; `blocks` are their
    sizes) weighs as much as any other. Without randomness.
    """
    mean = features.mean(0)
    scale = torch.cat([torch.full((size,), size ** -0.5) for size in blocks]) / (features.std(0) + 1e-3)
    x = (features - mean) * scale
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), label) + DECAY / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    weight = weight.detach() * scale
    return weight, bias.detach() - weight @ mean


@dataclass(frozen=True)
class Judges:
    """J judges: weight (J, classes, dim), bias (J, 1, classes); `folds` of them for each division."""

    network: Network
    orientation: str
    weight: Tensor
    bias: Tensor
    folds: int

    def answers(self, features: Tensor) -> np.ndarray:
        """The class that each judge finds most likely, (J, B), from features (V, B, dim) of B images."""
        return self.scores(features).argmax(2).numpy()

    def scores(self, features: Tensor) -> Tensor:
        """The log-probability that each judge gives each class, the mean over views: (J, B, classes)."""
        logits = torch.einsum("vbd,jcd->vjbc", features, self.weight) + self.bias
        return logits.log_softmax(3).mean(0)

    def __call__(self, batches: Iterable[Tensor]) -> np.ndarray:
        """The same, (J, N), for all of some batches of images (B, 3, S, S), S the network's size."""
        found = [self.answers(judge_features(self.network, batch, self.orientation)) for batch in batches]
        return np.concatenate(found, axis=1) if found else np.zeros((len(self.weight), 0), int)

    def of(self, photos: list[Photo], batch_size: int = 32, workers: int = 0) -> np.ndarray:
        """The same for photos."""
        return self(Squares(photos, self.network.size).batches(batch_size, workers))


def fit_judges(network: Network, image: Tensor, label: np.ndarray, names: list[str], folds: int,
               seed: int, orientation: str) -> tuple[Judges, np.ndarray]:
    """Judges that learn from real photos (N, 3, S, S) of classes (N,), each leaving out a fold; and the class
    (J, N) that each finds for each photo, NEVER where it learnt from it. Pure."""
    features = judge_features(network, image, orientation)
    target, heads, left_out = torch.from_numpy(label), [], []
    for division in range(DIVISIONS):
        fold = stratified_folds(label, names, folds, seed, division)
        for part in range(fold.max() + 1):
            rest = torch.from_numpy(fold != part)
            heads.append(fit_linear(features[:, rest].flatten(0, 1), network.blocks,
                                    target[rest].repeat(len(features)), len(names)))
            left_out.append(fold == part)
    weight, bias = (torch.stack(parts) for parts in zip(*heads, strict=True))
    judges = Judges(network, orientation, weight, bias[:, None], len(heads) // DIVISIONS)
    return judges, np.where(np.stack(left_out), judges.answers(features), NEVER)


def right_share(answers: np.ndarray, label: np.ndarray, folds: int) -> Number:
    """The share of right answers (J, N) for images of classes (N,), the mean over judges, and its interval.

    Wilson's with an effective number of images (Korn and Graubard 1998), which counts in what the judges
    learnt from: where all J judge all images, the variance between the `folds` of each division by the
    delete-a-group jackknife (Kott 2001). Real photos that each judge a part of need no such term
    (benchmarks/coverage.py measures how often the intervals hold the truth).
    """
    seen = answers != NEVER
    known = seen.any(0)
    if not known.any():
        return unknown("there is no image that a classifier did not learn from")
    right = ((answers == label) & seen)[:, known].sum(0) / seen[:, known].sum(0)
    share, n = float(right.mean()), float(known.sum())
    if seen.all():
        by_judge = (answers == label).mean(1).reshape(-1, folds)
        between = (folds - 1) / folds * ((by_judge - by_judge.mean(1, keepdims=True)) ** 2).sum(1).mean()
        within = share * (1 - share) / n
        n *= within / (within + between) if within else 1.0
    return {**number(share, *wilson(share * n, n)), "n": int(known.sum()), "judges": len(answers)}
