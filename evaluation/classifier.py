"""A pretrained network trained on, to classify images: what a user of generated images would train."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.fitting import PEAK, draw_batches, fit, relit, steps_of, turned
from evaluation.networks import Network
from runtime.seeds import seed_of, torch_rng


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (B, 3, H, W) with a Gaussian of `sigma` pixels."""
    import torchvision.transforms.functional  # slow to import

    return torchvision.transforms.functional.gaussian_blur(image, 2 * math.ceil(2.5 * sigma) + 1, sigma)


def augmented(image: Tensor, rng: torch.Generator, orientation: str = "any") -> Tensor:
    """Flips, quarter turns, soft warps, blur of 0 to 2 % of the side, light and noise.

    Warps and blur keep a classifier from judging by sharpness or by uneven outlines, which depend on the base
    model and not on the damage. orientation "fixed": neither flips nor turns.
    """
    if orientation == "any":
        image, = turned([image], rng)
    image = warped(image, rng)
    scale = image.shape[-1] / 128
    image = torch.cat([gaussian_blur(part, scale * (0.1 + 2.4 * float(torch.rand((), generator=rng))))
                       for part in image.split(4)])
    return relit(image, rng, 0.15).clamp(-1, 1)


def warped(image: Tensor, rng: torch.Generator) -> Tensor:
    """Displace (B, 3, S, S) smoothly. The strength differs between images: the standard deviation is 0 to 2.3
    % of the side. Displacements a sixth of the side apart are uncorrelated."""
    strength = 3 / 64 * torch.rand(len(image), 1, 1, 1, generator=rng)
    shift = (strength * torch.randn(len(image), 2, 7, 7, generator=rng)).to(image.device)
    shift = F.interpolate(shift, image.shape[2:], mode="bicubic", align_corners=True)
    still = torch.eye(2, 3, device=image.device).expand(len(image), 2, 3)
    grid = F.affine_grid(still, list(image.shape), align_corners=False) + shift.permute(0, 2, 3, 1)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def fit_classifier(model: nn.Module, peaks: dict[nn.Module, float], image: Tensor, label: Tensor, epochs: int,
                   rng: torch.Generator, orientation: str = "any",
                   pools: tuple[int, ...] | None = None) -> nn.Module:
    """Train `model` on images (N, 3, S, S) in [-1, 1] of classes (N,); the last epoch's weights, eval mode.

    peaks: see fit; pools: see draw_batches, by default all images are one.
    """
    def loss(chosen: Tensor) -> Tensor:
        return F.cross_entropy(model(augmented(image[chosen], rng, orientation)), label[chosen])

    pools = pools or (len(image),)
    fit(peaks, loss, draw_batches(pools, epochs, rng), steps_of(pools, epochs))
    return model.eval()


def fine_tuned(network: Network, image: Tensor, label: Tensor, classes: int, epochs: int, key: tuple,
               orientation: str, pools: tuple[int, ...] | None = None) -> nn.Module:
    """A copy of `network` with a new last layer, trained: images -> logits (B, classes).

    A pure function of its arguments; leaves the global random generators as they were.
    """
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed_of("judge", *key))
        trunk = copy.deepcopy(network.trunk).requires_grad_(True).train()
        trunk.to(memory_format=torch.channels_last)  # 3/4 of a step's time on a CPU
        for module in trunk.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # keeps its statistics: those of a few dozen images are poor
        head = nn.Sequential(nn.Dropout(0.2), nn.Linear(network.dim, classes)).to(network.device)
        # A small rate for what is pretrained: a few dozen images would undo it.
        return fit_classifier(nn.Sequential(trunk, head), {trunk: PEAK / 10, head: PEAK},
                              image.to(network.device), label.to(network.device), epochs,
                              torch_rng("judge", *key), orientation, pools)


@torch.no_grad()
def classify(model: nn.Module, image: Tensor) -> np.ndarray:
    """The class (B,) that the model finds most likely, for each image (B, 3, S, S)."""
    device = next(model.parameters()).device
    parts = [model(part.to(device)).argmax(1).cpu() for part in image.split(64)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, int)


def confusion(label: np.ndarray, answer: np.ndarray, classes: int) -> np.ndarray:
    """(asked for, classified as) counts, classes x classes."""
    table = np.zeros((classes, classes), int)
    np.add.at(table, (label, answer), 1)
    return table
