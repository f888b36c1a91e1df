"""Train-time validation: what the fixed-seed previews are worth to a judge, and how near the data they are.

A few previews make rough numbers. They show when a training gets somewhere and when it stops to; evaluate.py
says what a finished checkpoint is worth.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from comparison import FEWEST
from data import DefectDataset
from features import FeatureStore, resize
from folders import Photo
from judge import stratified_folds
from metrics import frechet, mmd
from networks import WeightsMissing, load_network
from pictures import tensor_to_image
from previews import Preview, Validate
from probe import fit_heads
from recipe import RunConfig

FOLDS = 5  # of the judges


class Validator:
    """DCA, FID and KID of previews against the training images, without augmentation.

    What cannot be measured, for want of weights, is said once, and stays null.
    """

    def __init__(self, config: RunConfig, folder: Path, dataset: DefectDataset, device: torch.device) -> None:
        photos = [Photo(item.image, item.mask, item.mask_value, "", dataset.classes[item.class_id])
                  for item in dataset.items]
        label = np.array([item.class_id for item in dataset.items])
        self.network = self.judges = None
        try:
            self.network = load_network(config.features, config.features_weights, device)
            self.training = FeatureStore(self.network, folder / "features")(photos)
        except WeightsMissing as error:
            print(f"validation: no FID and KID: {error.short}; see --features", file=sys.stderr)
        if np.bincount(label).min() < 2:
            print("validation: no DCA: a judge needs two images of each class", file=sys.stderr)
            return
        try:
            network = load_network(config.judge, config.judge_weights, device)
        except WeightsMissing as error:
            print(f"validation: no DCA: {error.short}; see --judge", file=sys.stderr)
            return
        fold = stratified_folds(label, dataset.classes, FOLDS, config.seed)
        self.judges = fit_heads(network, photos, label, len(dataset.classes), fold, config.seed,
                                config.orientation)
        self.ceiling = float((self.judges.held_out == label).mean())
        print(f"validation: the judges are right on {self.ceiling:.0%} of the training images that they did "
              "not see; DCA can hardly be higher", file=sys.stderr)

    @torch.no_grad()
    def __call__(self, preview: Preview) -> dict[str, float | None]:
        """{"dca", "ceiling", "fid", "kid"}; null where not measured."""
        scores: dict[str, float | None] = dict.fromkeys(("dca", "ceiling", "fid", "kid"))
        # Through 8 bits, as if saved: the training images come from files too.
        pixels = [np.asarray(tensor_to_image(image)) for image in preview.image]
        if self.judges is not None:
            squares = torch.stack([resize(image, self.judges.size) for image in pixels])
            right = self.judges.classify(squares) == np.array(preview.class_id)
            scores |= {"dca": float(right.mean()), "ceiling": self.ceiling}
        if self.network is not None and min(len(pixels), len(self.training)) >= FEWEST:
            squares = torch.stack([resize(image, self.network.size) for image in pixels])
            vectors = torch.cat([self.network.trunk(part.to(self.network.device)).float().cpu()
                                 for part in squares.split(16)]).numpy()
            scores |= {"fid": frechet(vectors, self.training), "kid": mmd(vectors, self.training)[0]}
        return scores


def validation(config: RunConfig, folder: Path, dataset: DefectDataset,
               device: torch.device) -> Callable[[], Validate] | None:
    """What prepares a Validator when the training begins; None with --no-validate."""
    return partial(Validator, config, folder, dataset, device) if config.validate else None
