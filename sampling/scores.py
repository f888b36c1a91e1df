"""How good a drawn image is, on the scale of real photos.

    probability    of the class asked for, by classifiers that learnt from the real photos, see judges.py
    copy_distance  to the nearest real photo of its class in pixels, in any flip and quarter turn
    real_distance  to the nearest real photo of its class in features of the classifiers' network
    nn_score       how like real ones its patches are: the mean over its patches of the cosine with the most
                   similar patch of any real photo of its class

Distances are of the square around the damage where the strategy draws masks, else of the whole picture, and
are divided by the usual one between real photos of that class. Real photos are scored alike: by classifiers
that did not learn from them, and by the nearest of the others. So "as good as all but the worst 5 %" is a
number from the data: the k-th worst of n photos, k = floor(0.05 (n + 1)), which a new real photo falls short
of at most so often (split conformal prediction, Lei et al. 2018, 1604.04173). A copy is nearer than the
nearest 5 % of real photos are to each other, at every level. Nothing is thrown away by real_distance: all
images of a base share most of it, so that no redraw brings them nearer; nor by nn_score, of which a copy has
the best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from evaluation.features import cut_square
from evaluation.judges import NEVER, Judges, fit_judges, judge_features, why_none
from evaluation.memorisation import Space, orientations
from evaluation.networks import MapFeatures, Network

FOLDS, SEED = 5, 271_828  # of the real photos; the divisions are not those of evaluate.py, whose seed is 42
SMALL = 32  # side in pixels of the pictures whose distance finds copies
REASONS = {"probability": "not recognised", "copy_distance": "copies"}  # scores that decide
COPIES = 0.05  # share of the real photos that would count as copies of others


class Picture(NamedTuple):
    """An image (H, W, 3) uint8, and where its damage is, (H, W) in {0, 1}, if that is known."""

    image: np.ndarray
    mask: np.ndarray | None = None


def bound(values: np.ndarray, share: float) -> float | None:
    """What all real photos but the worst `share` reach, of their scores (N,); None where N is too small."""
    known = np.sort(values[np.isfinite(values)])
    worst = math.floor(share * (len(known) + 1))
    return None if worst < 1 else round(float(known[worst - 1]), 4)


@dataclass
class Scorer:
    """Scores images. near: of each class, the spaces of features and of pixels with its real photos; patches:
    of each class, those of its real photos (P, C); cropped: whether distances are of the damage; scale: what
    a feature (dim,) is multiplied by; bounds: by score; missing: why a score has none."""

    judges: Judges | None
    names: list[str]
    near: dict[str, tuple[Space, Space]]
    patches: dict[str, Tensor]
    cropped: dict[str, bool]
    scale: np.ndarray
    network: Network
    orientation: str
    bounds: dict[str, float]
    missing: dict[str, str]

    def __call__(self, picture: Picture, name: str) -> dict[str, float]:
        """The scores of one image of which the class `name` was asked; NaN is none."""
        found, crop = {}, self.cropped[name] and picture.mask is not None and bool(picture.mask.any())
        features = features_of(self.network, [picture], False, self.orientation)
        if self.judges:
            shares = self.judges.scores(features).exp().mean(0)[0]
            found["probability"] = float(shares[self.names.index(name)] / shares.sum())
        if crop:
            features = features_of(self.network, [picture], True, self.orientation)
        by_features, by_pixels = self.near[name]
        found["copy_distance"] = float(by_pixels.nearness(pixels_of([picture], crop))[0][0])
        found["real_distance"] = float(by_features.nearness(features.mean(0).numpy() * self.scale)[0][0])
        own = patches_of(self.network, [picture], crop)
        found["nn_score"] = float((own @ self.patches[name].T).amax(1).mean())
        return {key: round(value, 4) for key, value in found.items() if math.isfinite(value)}

    def failed(self, scores: dict[str, float]) -> list[str]:
        """The scores that are worse than real photos'."""
        return [key for key, limit in self.bounds.items() if key in scores and scores[key] < limit]


def features_of(network: Network, pictures: list[Picture], crop: bool, orientation: str) -> Tensor:
    """(V, N, dim), see judge_features."""
    squares = [cut_square(*picture, network.size, crop) for picture in pictures]
    return judge_features(network, torch.stack(squares), orientation)


@torch.no_grad()
def patches_of(network: Network, pictures: list[Picture], crop: bool) -> Tensor:
    """The patches of all pictures, (P, C), of length 1."""
    squares = torch.stack([cut_square(*picture, network.size, crop) for picture in pictures])
    maps = cast(MapFeatures, network.maps)
    return torch.cat([maps.patches(part.to(network.device)).flatten(0, 1).float().cpu()
                      for part in squares.split(16)])


def pixels_of(pictures: list[Picture], crop: bool) -> np.ndarray:
    """(N, 3 SMALL^2)"""
    return torch.stack([cut_square(*picture, SMALL, crop) for picture in pictures]).flatten(1).numpy()


def fit_scorer(network: Network, pictures: list[Picture], label: np.ndarray, names: list[str],
               cropped: dict[str, bool], orientation: str, share: float) -> Scorer:
    """A scorer from real photos of classes (N,), as the base draws them. Pure."""
    whole, values = features_of(network, pictures, False, orientation), dict[str, np.ndarray]()
    judges, missing = None, dict[str, str]()
    if why := why_none(label, len(names)):
        missing["probability"] = why
    else:
        image = torch.stack([cut_square(*picture, network.size) for picture in pictures])
        judges, answers = fit_judges(network, image, label, names, FOLDS, SEED, orientation)
        own = judges.scores(whole).exp().numpy()[:, np.arange(len(label)), label]
        unseen = answers != NEVER
        known = unseen.any(0)
        values["probability"] = (own * unseen).sum(0)[known] / unseen.sum(0)[known]
    rows = {name: np.flatnonzero(label == i) for i, name in enumerate(names)}
    vectors = {name: (features_of(network, [pictures[i] for i in those], True, orientation)
                      if cropped[name] else whole[:, those]).mean(0).numpy() for name, those in rows.items()}
    spread = np.sqrt(np.mean([x.var(0) for x in vectors.values()], axis=0))
    scale = np.concatenate([np.full(size, size ** -0.5) for size in network.blocks]) / (spread + 1e-3)
    near, patches = {}, {}
    for name, those in rows.items():
        small = pixels_of([pictures[i] for i in those], cropped[name])
        turned = orientations(small, SMALL) if orientation == "any" else [small]
        near[name] = Space([(vectors[name] * scale).astype(np.float32)], None), Space(turned, None)
        patches[name] = patches_of(network, [pictures[i] for i in those], cropped[name])
    values["copy_distance"] = np.concatenate([by_pixels.real for _, by_pixels in near.values()])
    bounds = dict[str, float]()
    for key, found in values.items():
        limit = bound(found, COPIES if key == "copy_distance" else share)
        if limit is None:
            missing[key] = f"{np.isfinite(found).sum()} real photos have it, which are too few"
        else:
            bounds[key] = limit
    return Scorer(judges, names, near, patches, cropped, scale.astype(np.float32), network, orientation,
                  bounds, missing)
