"""All that is random in a training step, drawn for each image by itself: the same in any batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lora
from adapter import NULL
from batches import Batch
from recipe import RunConfig
from seeds import seed_of, torch_rng


class Draws:
    """One batch's random numbers, each image's a function of (seed, epoch, item) and the order of asking."""

    def __init__(self, config: RunConfig, batch: Batch, device: torch.device) -> None:
        self.batch, self.device, self.class_dropout = batch, device, config.class_dropout
        self.size = config.resolution // 8
        self.keys = [(config.seed, "step", int(epoch), int(item))
                     for epoch, item in zip(batch["epoch"], batch["item"], strict=True)]
        self.rngs = [torch_rng(*key) for key in self.keys]

    def dropout(self, unet: nn.Module) -> None:
        """Let the adapters of `unet` drop out their inputs by these images' own random numbers."""
        lora.seed_dropout(unet, [seed_of(*key, "dropout") for key in self.keys])

    def noise(self) -> Tensor:
        """(B,4,R/8,R/8) standard normal."""
        shape = (4, self.size, self.size)
        return torch.stack([torch.randn(shape, generator=rng) for rng in self.rngs]).to(self.device)

    def latents(self, mean: Tensor, std: Tensor) -> Tensor:
        """A sample of the VAE's posterior (B,4,R/8,R/8)."""
        return mean.to(self.device) + std.to(self.device) * self.noise()

    def timesteps(self) -> Tensor:
        """(B,) uniform in 0 .. 999."""
        return torch.stack([torch.randint(0, 1000, (), generator=rng) for rng in self.rngs]).to(self.device)

    def chosen(self, share: float) -> Tensor:
        """(B,) bool, on the CPU: which images belong to a random `share` of all."""
        return torch.stack([torch.rand((), generator=rng) < share for rng in self.rngs])

    def class_ids(self) -> Tensor:
        """(B,) class ids, a share --class-dropout of them the null class."""
        return torch.where(self.chosen(self.class_dropout), NULL, self.batch["class_id"]).to(self.device)
