"""A small network that segments damage: does it learn better with generated images and masks?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.fitting import PEAK, draw_batches, fit, relit, turned
from runtime.seeds import seed_of, torch_rng

SIZE = 128
WIDTHS = (16, 32, 64)


def _stage(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(),
                         nn.Conv2d(c_out, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class SegmentationNet(nn.Module):
    """A U-Net of three levels (Ronneberger et al. 2015, 1505.04597), a hundred thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(map(_stage, (3, *WIDTHS[:-1]), WIDTHS))
        self.up = nn.ModuleList(_stage(deep + wide, wide) for deep, wide in zip(WIDTHS[:0:-1], WIDTHS[-2::-1],
                                                                                strict=True))
        self.out = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1] -> logits of damage (B, 1, S, S); S divides by 4."""
        skips: list[Tensor] = []
        for stage in self.down:
            image = stage(F.max_pool2d(image, 2) if skips else image)
            skips.append(image)
        h = skips.pop()
        for stage in self.up:
            h = stage(torch.cat([F.interpolate(h, scale_factor=2.0, mode="bilinear"), skips.pop()], dim=1))
        return self.out(h)


def fit_segmenter(image: Tensor, mask: Tensor, epochs: int, key: tuple, orientation: str,
                  device: torch.device, pools: tuple[int, ...]) -> SegmentationNet:
    """Train on images (N, 3, S, S) and masks (N, 1, S, S). The loss is cross-entropy plus Dice, as damage is
    small."""
    image, mask, rng = image.to(device), mask.to(device), torch_rng("segmenter", *key)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of("segmenter", *key))
        model = SegmentationNet().to(device)

        def loss(chosen: Tensor) -> Tensor:
            pair = [image[chosen], mask[chosen]]
            x, y = turned(pair, rng) if orientation == "any" else pair
            logits = model(relit(x, rng, 0.1))
            p = logits.sigmoid()
            dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
            return F.binary_cross_entropy_with_logits(logits, y) + dice

        batches = list(draw_batches(pools, epochs, rng))
        fit({model: PEAK}, loss, batches, len(batches))
    return model


@torch.no_grad()
def intersection_over_union(model: SegmentationNet, image: Tensor, mask: Tensor) -> np.ndarray:
    """IoU (N,) of the pixels with a probability above one half with the mask; NaN for images without
    damage."""
    device = next(model.parameters()).device
    marked = torch.cat([model(part.to(device)).cpu() > 0 for part in image.split(32)])
    wanted = mask > 0.5
    both, either = (marked & wanted).sum((1, 2, 3)), (marked | wanted).sum((1, 2, 3))
    return torch.where(wanted.flatten(1).any(1), both / either.clamp(min=1), torch.nan).numpy()
