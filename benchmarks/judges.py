"""How judges should learn, chosen on held-out images: which features, which decay, or fine-tuned.

Accuracy in five folds, several divisions each, on photos in a folder, on the same as the embedded base's VAE
draws them, and on a drawn product of another kind, fabric. "nested" chooses features and decay by four inner
folds of the images that it learns from, so its number is of images that chose nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.timing import record
from dataset.layouts import find_products
from dataset.scan import scan_products
from evaluation import judges
from evaluation.classifier import classify, fine_tuned
from evaluation.features import read_square, resize
from evaluation.judges import fit_linear, stratified_folds
from evaluation.networks import LITE, MapFeatures, Network, load_network
from evaluation.vae_reconstruction import redrawn
from runtime import errors
from runtime.cli import flag, parse
from sd.pretrained.weights import load_vae
from tiny.procedural import draw

FOLDS, INNER, CPU = 5, 4, torch.device("cpu")
DECAYS = (1e-4, 1e-3, 1e-2)
FABRIC = ("good", "blob", "scratch", "stain")
Candidate = tuple[str, float]  # features, decay
Judge = Callable[[np.ndarray, np.ndarray], np.ndarray]  # images to learn from, to be asked of -> is it right?


@dataclass
class Config:
    """The command line of benchmarks.judges."""

    data: str = flag(..., "folder of real photos, as for training", group="what")
    networks: list[str] = flag([LITE], "networks to compare", group="what")
    seeds: int = flag(5, "divisions into folds", group="how", minimum=1)
    per_class: int = flag(20, "drawn pictures a class of fabric", group="how", minimum=5)
    fine_tune_epochs: int = flag(0, "also fine-tune the networks, in the first division (default: not)",
                                 group="how", minimum=0)
    out: str = flag("benchmarks/judges.json", "where the result goes", group="how")


@dataclass
class Labelled:
    """Pictures (H, W, 3) of 0 to 255, their classes (N,) and the classes' names."""

    pictures: list[np.ndarray]
    label: np.ndarray
    names: list[str]


def photographed(folder: str, redraw: bool) -> Labelled:
    """The photos of a folder as squares of 512 px, or of 128 px as the embedded base's VAE draws them."""
    photos = scan_products(find_products([folder])).photos
    names = sorted({photo.damage for photo in photos})
    vae = load_vae("tiny", device=CPU, dtype=torch.float32)
    pictures = [np.asarray(redrawn(vae, read_square(photo, 128))) if redraw
                else ((read_square(photo, 512) + 1) * 127.5).permute(1, 2, 0).numpy() for photo in photos]
    return Labelled(pictures, np.array([names.index(photo.damage) for photo in photos]), names)


def fabric(per_class: int) -> Labelled:
    """Drawn cloth of any colour, undamaged or with one of three damage types, of 256 px."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in FABRIC}
    for seed in count(90_000_000):
        words = draw(seed, 32).words
        name = next((name for name in FABRIC if name in words), None)
        if words[3] == "fabric" and name and len(found[name]) < per_class:
            found[name].append(draw(seed, 256).image)
        if min(map(len, found.values())) == per_class:
            pictures = [image for name in FABRIC for image in found[name]]
            return Labelled(pictures, np.repeat(np.arange(len(FABRIC)), per_class), list(FABRIC))
    raise AssertionError


def last_map(network: Network) -> nn.Module:
    """Images -> each channel's mean and maximum on the last map; of ResNets the mean alone."""
    if network.name != LITE:
        return network.trunk
    net: Any = network.trunk.net
    layers = [net._conv_stem, net._bn0, net._swish, *net._blocks, net._conv_head, net._bn1, net._swish]
    return MapFeatures(nn.Sequential(*layers))


def features_of(network: Network, data: Labelled) -> tuple[dict[str, tuple[Tensor, tuple[int, ...]]], float]:
    """Name -> features (2, N, dim) and their blocks; and seconds an image for those of the middle maps."""
    image = torch.stack([resize(picture, network.size) for picture in data.pictures])
    began = time.process_time()
    middle = judges.judge_features(network, image, "any")
    seconds = (time.process_time() - began) / len(image)
    last = judges.judge_features(dataclasses.replace(network, maps=last_map(network)), image, "any")
    both = torch.cat([middle, last], dim=2)
    return {"strides 8 and 16": (middle, network.blocks), "last": (last, (last.shape[2],)),
            "both": (both, (*network.blocks, last.shape[2]))}, seconds


def right(features: Tensor, blocks: tuple[int, ...], label: np.ndarray, decay: float, learnt: np.ndarray,
          asked: np.ndarray) -> np.ndarray:
    """Whether a judge that learnt from the images `learnt` (N,) is right on each of `asked`."""
    target = torch.from_numpy(label)
    with mock.patch.object(judges, "DECAY", decay):
        weight, bias = fit_linear(features[:, learnt].flatten(0, 1), blocks,
                                  target[learnt].repeat(len(features)), int(label.max()) + 1)
    logits = (features[:, asked] @ weight.T + bias).log_softmax(2).mean(0)
    return logits.argmax(1).numpy() == label[asked]


def by_folds(data: Labelled, seed: int, judge: Judge) -> int:
    """How many images judge(learnt, asked) gets right, each asked of one that learnt from other folds."""
    fold = stratified_folds(data.label, data.names, FOLDS, seed)
    return sum(int(judge(fold != part, fold == part).sum()) for part in range(fold.max() + 1))


def nested(candidates: dict[Candidate, Judge], data: Labelled, seed: int) -> Judge:
    """A judge that chooses a candidate by folds of the images that it learns from."""
    def judge(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
        places = np.flatnonzero(learnt)
        fold = np.full(len(learnt), -1)
        fold[places] = stratified_folds(data.label[places], data.names, INNER, seed)
        scores = {name: sum(int(of(learnt & (fold != part), fold == part).sum()) for part in range(INNER))
                  for name, of in candidates.items()}
        return candidates[max(scores, key=lambda name: scores[name])](learnt, asked)
    return judge


def measure(network: Network, data: Labelled, config: Config) -> dict[str, object]:
    """Right answers of each candidate, of the nested choice, and of fine-tuned networks if wanted."""
    features, seconds = features_of(network, data)
    candidates: dict[Candidate, Judge] = {(name, decay): partial(right, x, blocks, data.label, decay)
                                          for name, (x, blocks) in features.items() for decay in DECAYS}
    found: dict[str, object] = {
        f"{name}, decay {decay:g}": [by_folds(data, seed, judge) for seed in range(config.seeds)]
        for (name, decay), judge in candidates.items()}
    found["nested"] = [by_folds(data, seed, nested(candidates, data, seed)) for seed in range(config.seeds)]
    if config.fine_tune_epochs:
        image = torch.stack([resize(picture, network.size) for picture in data.pictures])

        def tuned(learnt: np.ndarray, asked: np.ndarray) -> np.ndarray:
            model = fine_tuned(network, image[learnt], torch.from_numpy(data.label)[learnt], len(data.names),
                               config.fine_tune_epochs, (0,), "any")
            return classify(model, image[asked]) == data.label[asked]

        found[f"fine-tuned, {config.fine_tune_epochs} epochs"] = [by_folds(data, 0, tuned)]
    return {"images": len(data.label), "right": found, "feature_seconds": round(seconds, 4)}


def main() -> None:
    """Measure every network on every kind of images."""
    config = parse(Config, __doc__, "example:\n  python -m benchmarks.judges --data DS-MVTec/bottle\n",
                   program="-m benchmarks.judges")
    kinds = {"photos": photographed(config.data, False), "through the VAE": photographed(config.data, True),
             "fabric": fabric(config.per_class)}
    found = {}
    for name in config.networks:
        network = load_network(name, None, CPU)
        for kind, data in kinds.items():
            found[f"{name}, {kind}"] = measure(network, data, config)
            print(name, kind, found[f"{name}, {kind}"], flush=True)
    record(config.out, classes={kind: data.names for kind, data in kinds.items()}, rows=found)


if __name__ == "__main__":
    errors.run(main)
