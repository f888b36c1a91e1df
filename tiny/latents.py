"""The pictures that UNets are trained on, encoded and kept, and the weights of the loss in their latents."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from dataset.masks import latent_mask
from runtime.device import DTYPES, autocast
from runtime.seeds import torch_rng
from sd.samplers import Diffusion
from sd.vae import VAE
from tiny.words import TEXT, Words

POOL = 24_576  # pictures kept as latents; each step replaces the oldest by new ones


class Pool:
    """A ring buffer of encoded pictures: posterior mean and standard deviation, token ids, damaged cells."""

    def __init__(self, vae: VAE, words: Words, precision: str = "fp32") -> None:
        self.vae, self.words, self.made, self.dtype = vae, words, 0, DTYPES[precision]
        self.mean, self.std = torch.zeros(POOL, 4, 16, 16), torch.zeros(POOL, 4, 16, 16)
        self.ids = torch.ones(POOL, TEXT.max_position_embeddings, dtype=torch.long)
        self.cells = torch.zeros(POOL, 1, 16, 16)

    @torch.no_grad()
    def add(self, image: Tensor, words: list[tuple[str, ...]], mask: Tensor) -> None:
        """Encode pictures and put them over the oldest."""
        where = torch.arange(self.made, self.made + len(image)) % POOL
        mean, std = self.posterior(image)
        self.mean[where], self.std[where] = mean.float().cpu(), std.float().cpu()
        self.ids[where], self.cells[where] = self.words.ids(words), latent_mask(mask)
        self.made += len(image)

    def fill(self, draw: Callable[[range], tuple], stop: int) -> None:
        """Add the newest pictures that `draw` makes of the seeds below `stop`."""
        for seed in tqdm(range(max(0, stop - POOL), stop, 32), "drawing", disable=None):
            self.add(*draw(range(seed, seed + 32)))

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's posterior, computed on its device."""
        device = next(self.vae.parameters()).device
        with autocast(device, self.dtype):
            return self.vae.posterior(image.to(device, memory_format=torch.channels_last))

    def batch(self, size: int, step: int) -> tuple[Tensor, ...]:
        """z_0, eps, t, ids (a tenth of them null) and cells, drawn with a generator seeded by `step`."""
        rng = torch_rng("unet", step)
        i = torch.randint(0, min(self.made, POOL), (size,), generator=rng)
        z_0 = self.mean[i] + self.std[i] * torch.randn(size, 4, 16, 16, generator=rng)
        drop = torch.rand(size, generator=rng) < 0.1
        ids = torch.where(drop[:, None], self.words.ids([()]), self.ids[i])
        eps, t = torch.randn(z_0.shape, generator=rng), torch.randint(0, 1000, (size,), generator=rng)
        return z_0, eps, t, ids, self.cells[i]


def min_snr(t: Tensor, gamma: float = 5.0) -> Tensor:
    """Weights (B,) min(SNR, gamma) / SNR of the loss on eps (Hang et al. 2023, arXiv 2303.09556, equation 8).
    Shapes count more than grain and are learnt sooner."""
    abar = Diffusion().abar.to(t.device)[t]
    snr = abar / (1 - abar)
    return snr.clamp(max=gamma) / snr


def in_cells(error: Tensor, cells: Tensor) -> Tensor:
    """Means (B,) of `error` (B, 4, h, w) over the `cells` (B, 1, h, w) in {0, 1}; 0 without any."""
    error, count = error.mean(dim=1, keepdim=True), cells.sum(dim=(1, 2, 3))
    return (error * cells).sum(dim=(1, 2, 3)) / count.clamp(min=1)


def pool_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a training from a pool."""
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--fresh", type=int, default=8, help="new pictures a step")
    parser.add_argument("--first", type=int, default=1024, help="pictures drawn before the first step")
