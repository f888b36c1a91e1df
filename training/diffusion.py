"""What the diffusion steps of the three strategies share: forward process, loss, mixed precision."""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.device import DTYPES, autocast
from sd.samplers import Diffusion
from training.config import RunConfig

DIFFUSION = Diffusion()
add_noise = DIFFUSION.add_noise  # (z_0, eps, t) -> z_t


def per_image_loss(eps_hat: Tensor, eps: Tensor, t: Tensor, gamma: float = 0.0, hole: Tensor | None = None,
                   weight: float = 0.0) -> Tensor:
    """||eps - eps_hat||^2 (DDPM, arXiv 2006.11239, equation 14), the mean of each image: (B,).

    eps_hat, eps: (B,4,h,w). gamma: where not 0, times min(SNR(t), gamma) / SNR(t) (Hang et al. 2023, arXiv
    2303.09556), with the signal-to-noise ratio abar / (1 - abar) of timestep t (B,). hole (B,1,h,w) in {0,1}
    with `weight` w: (1 - w) times the mean over the image plus w times the mean over its hole, whatever the
    hole's size; 0 for an empty hole. Other cells than a hole's may be given in the same way.
    """
    error = (eps_hat.float() - eps).square()
    if gamma:
        abar = DIFFUSION.abar.to(t.device)[t]
        error = error * (gamma * (1 - abar) / abar).clamp(max=1)[:, None, None, None]
    if hole is None:
        return error.mean(dim=(1, 2, 3))
    error = error.mean(dim=1, keepdim=True)
    in_hole = (error * hole).sum(dim=(1, 2, 3)) / hole.sum(dim=(1, 2, 3)).clamp(min=1)
    return (1 - weight) * error.mean(dim=(1, 2, 3)) + weight * in_hole


def mixed_precision(config: RunConfig, device: torch.device) -> torch.autocast:
    """torch's autocast with --no-fast. Otherwise disabled, because there is nothing to cast: the frozen base
    is stored in --precision, and the fp32 weights trained beside it compute in the precision of their input.
    """
    return autocast(device, torch.float32 if config.fast else DTYPES[config.precision])
