"""The random numbers of a training step. Each image has its own generator: batch sizes change nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lora
from checkpoints.class_embedding import NULL
from runtime.seeds import seed_of, torch_rng
from training.batches import Batch
from training.config import RunConfig


class StepNoise:
    """One batch's random numbers. Each image's generator is seeded by (seed, epoch, item).

    The order of the draws matters: another order gives other numbers.
    """

    def __init__(self, config: RunConfig, batch: Batch, device: torch.device) -> None:
        self.device, self.class_dropout, self.size = device, config.class_dropout, config.resolution // 8
        self.keys = [(config.seed, "step", int(epoch), int(item))
                     for epoch, item in zip(batch["epoch"], batch["item"], strict=True)]
        self.rngs = [torch_rng(*key) for key in self.keys]

    def normal(self) -> Tensor:
        """(B,4,R/8,R/8) standard normal."""
        shape = (4, self.size, self.size)
        return torch.stack([torch.randn(shape, generator=rng) for rng in self.rngs]).to(self.device)

    def timesteps(self) -> Tensor:
        """(B,) integers, uniform in 0 .. 999."""
        return torch.stack([torch.randint(0, 1000, (), generator=rng) for rng in self.rngs]).to(self.device)

    def chosen(self, share: float) -> Tensor:
        """(B,) bool, each True with probability `share`."""
        return torch.stack([torch.rand((), generator=rng) < share for rng in self.rngs]).to(self.device)

    def drop_class(self, class_id: Tensor) -> Tensor:
        """(B,) class ids, each replaced by NULL with probability --class-dropout."""
        return torch.where(self.chosen(self.class_dropout), NULL, class_id)

    def seed_dropout(self, unet: nn.Module) -> None:
        """Seed the dropout of the LoRA layers in `unet` by image. Draws nothing from the generators."""
        lora.seed_dropout(unet, [seed_of(*key, "dropout") for key in self.keys])
        lora.divide(unet)
