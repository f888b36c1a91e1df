"""Judges for train-time validation: a linear layer on a network's frozen features, fitted in seconds.

Rougher than the fine-tuned judges of evaluate.py, for it must cost little beside a training.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from features import read_squares
from folders import Photo
from judge import Judges, augmented, classify
from networks import Network
from seeds import torch_rng

VARIANTS = 4  # of each image: as it is, and augmented
DECAY = 0.1  # of the weights; an order of magnitude more or less changed little


def fit_head(features: Tensor, label: Tensor, classes: int) -> nn.Linear:
    """Logistic regression of classes (N,) on standardised features (N, dim), which the layer takes plain."""
    mean, std = features.mean(0), features.std(0) + 1e-3
    head = nn.Linear(features.shape[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head((features - mean) / std), label) + DECAY / 2 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        head.weight /= std
        head.bias -= head.weight @ mean
    return head.requires_grad_(False)


def fit_heads(network: Network, photos: list[Photo], label: np.ndarray, classes: int, fold: np.ndarray,
              seed: int, orientation: str) -> Judges:
    """One judge for each fold number, fitted to all images outside that fold and tested in it.

    A pure function of its arguments; leaves the global random generators as they were.
    """
    image, rng = read_squares(photos, network.size), torch_rng("probe", seed)
    with torch.no_grad():
        features = torch.stack([torch.cat([
            network.trunk((augmented(part, rng, orientation) if variant else part).to(network.device)).cpu()
            for part in image.split(16)]) for variant in range(VARIANTS)])
    models, held_out, target = [], np.full(len(photos), -1), torch.from_numpy(label)
    for number in range(fold.max() + 1):
        inside = torch.from_numpy(fold == number)
        with torch.random.fork_rng([]):  # a new layer draws weights
            head = fit_head(features[:, ~inside].flatten(0, 1), target[~inside].repeat(VARIANTS), classes)
        models.append(nn.Sequential(network.trunk, head.to(network.device)))
        held_out[fold == number] = classify(models[-1], image[inside])
    return Judges(models, held_out, network.size)
