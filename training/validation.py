"""Train-time validation: DCA, FID and KID of the fixed-seed previews.

A few previews give rough numbers. They show when the training improves and when it stops improving;
evaluate.py measures a finished checkpoint.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data import DefectDataset
from dataset.layouts import Photo
from dataset.padding import padded
from evaluation.comparison import FEWEST
from evaluation.features import FeatureStore, read_square, resize
from evaluation.judges import fit_judges, right_share, why_none
from evaluation.metrics import frechet, mmd
from evaluation.networks import WeightsMissing, load_network
from evaluation.vae_reconstruction import redrawn
from runtime.pictures import tensor_to_image
from training.config import RunConfig
from training.diffusion import mixed_precision
from training.latents import Latents
from training.previews import Preview
from training.run_folder import Scores

FOLDS = 5  # of the classifiers


class Validator:
    """DCA, FID and KID of previews against the training images, without augmentation: their squares, or with
    another --view than whole or with --fit pad what the first epoch shows of them.

    The judges learn from these images as the base's VAE draws them. A score whose network has no weights here
    is reported once on stderr, and stays null.
    """

    def __init__(self, config: RunConfig, folder: Path, latents: Latents) -> None:
        photos = [Photo(item.image, item.mask, item.mask_value, "", latents.classes[item.class_id])
                  for item in latents.items]
        label = np.array([item.class_id for item in latents.items])
        self.network = self.judges = None
        views = None
        if config.view != "whole" or config.fit == "pad":
            dataset = DefectDataset(latents.items, latents.classes,
                                    dataclasses.replace(config, augment=False), config.resolution)
            views = [dataset.example(i, epoch=0)["image"] for i in range(len(dataset))]
        try:
            self.network = load_network(config.features, config.features_weights, latents.device)
            self.training = (FeatureStore(self.network, folder / "features")(photos) if views is None
                             else self._features([np.asarray(tensor_to_image(view)) for view in views]))
        except WeightsMissing as error:
            print(f"validation: no FID and KID: {error.short}; see --features", file=sys.stderr)
        if why := why_none(label, len(latents.classes)):
            print(f"validation: no DCA: {why}", file=sys.stderr)
            return
        try:
            network = load_network(config.judge, config.judge_weights, latents.device)
        except WeightsMissing as error:
            print(f"validation: no DCA: {error.short}; see --judge", file=sys.stderr)
            return
        with latents.vae_on_device(), mixed_precision(config, latents.device):
            plain = views or (read_square(photo, config.resolution) for photo in photos)
            bar = tqdm(plain, desc="through the VAE", total=len(photos), unit="image", leave=False,
                       disable=None)
            drawn = [redrawn(latents.vae, square) for square in bar]
        squares = torch.stack([resize(np.asarray(picture), network.size) for picture in drawn])
        self.judges, answers = fit_judges(network, squares, label, latents.classes, FOLDS, config.seed,
                                          config.orientation)
        self.ceiling = right_share(answers, label, self.judges.folds)["value"]
        print(f"validation: the classifiers are right on {self.ceiling:.0%} of the held-out training images "
              "as the VAE draws them, about the highest DCA to expect", file=sys.stderr)

    @torch.no_grad()
    def __call__(self, preview: Preview) -> Scores:
        """{"dca", "ceiling", "fid", "kid"}; None where not measured."""
        scores: Scores = dict.fromkeys(("dca", "ceiling", "fid", "kid"))
        # Rounded to 8 bits, as in a file, because the training images come from files too.
        pixels = [padded(np.asarray(tensor_to_image(image))) for image in preview.image]
        if self.judges is not None:
            squares = torch.stack([resize(image, self.judges.network.size) for image in pixels])
            right = self.judges([squares]) == np.array(preview.class_id)
            scores |= {"dca": float(right.mean()), "ceiling": self.ceiling}
        if self.network is not None and min(len(pixels), len(self.training)) >= FEWEST:
            vectors = self._features(pixels)
            scores |= {"fid": frechet(vectors, self.training), "kid": mmd(vectors, self.training)[0]}
        return scores

    @torch.no_grad()
    def _features(self, pixels: list[np.ndarray]) -> np.ndarray:
        """(len(pixels), dim) of pictures (R,R,3) uint8."""
        assert self.network is not None
        squares = torch.stack([resize(image, self.network.size) for image in pixels])
        return torch.cat([self.network.trunk(part.to(self.network.device)).float().cpu()
                          for part in squares.split(16)]).numpy()
