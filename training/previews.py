"""Previews: one row a class, drawn from fixed seeds by the weights that are being trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from runtime.pictures import grid
from training.config import RunConfig
from training.diffusion import mixed_precision
from training.latents import Latents

PREVIEWS = 4  # images of a class


class Row(NamedTuple):
    """One class: its images (N,3,H,W) in [-1,1], for validation, and the pictures to show."""

    image: Tensor
    pictures: list[Image.Image]


class Preview(NamedTuple):
    """All classes: the picture to look at, the images (N,3,H,W) in [-1,1] and the class id of each."""

    picture: Image.Image
    image: Tensor
    class_id: list[int]


PreviewRow = Callable[[int, str], Row]  # (class id, class name) -> its row


def draw_preview(config: RunConfig, net: nn.Module, latents: Latents, row: PreviewRow) -> Preview:
    """Draw the row of each class, with `net` in eval mode and the VAE on its device."""
    net.eval()
    with latents.vae_on_device(), mixed_precision(config, latents.device):
        rows = [row(class_id, name) for class_id, name in enumerate(latents.classes)]
    net.train()
    return Preview(grid([row.pictures for row in rows], latents.classes),
                   torch.cat([row.image for row in rows]),
                   [class_id for class_id, row in enumerate(rows) for _ in row.image])
