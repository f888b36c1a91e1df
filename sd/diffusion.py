"""Noising and denoising: DDPM's forward process, and the samplers DDPM, DDIM and DPM-Solver++(2M).

A sampler takes one callable eps(z_t, t) -> eps_hat and yields z after each step; the last one is z_0. Guidance,
ControlNet and inpainting live inside that callable. `noise(i)` gives the standard normal noise of step i.
Symbols: abar is the cumulative product of alpha = 1 - beta (DDPM, Ho et al. 2020, arXiv 2006.11239).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Eps = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]


class Diffusion:
    """SD 1.5's noise schedule: betas linear in their square roots from 0.00085 to 0.012, 1000 steps."""

    def __init__(self, num_train_timesteps: int = 1000) -> None:
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, num_train_timesteps) ** 2
        self.abar = torch.cumprod(1 - beta, dim=0)

    def add_noise(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (DDPM, equation 4). z_0, eps (B, C, H, W); t (B,)."""
        abar = self.abar.to(z_0.device)[t][:, None, None, None]
        return (abar.sqrt() * z_0 + (1 - abar).sqrt() * eps).to(z_0.dtype)


def leading_timesteps(steps: int) -> list[int]:
    """981, 961, .., 1 for 50 steps: every (1000 // steps)-th timestep, shifted by one, from noisy to clean."""
    return [i * (1000 // steps) + 1 for i in reversed(range(steps))]


def _schedule(steps: int) -> Iterator[tuple[int, int, float, int]]:
    """(i, t, abar_t, t_prev) of each leading step; t_prev is negative at the last."""
    abar = Diffusion().abar.double()
    for i, t in enumerate(leading_timesteps(steps)):
        yield i, t, abar[t].item(), t - 1000 // steps


def ddim(eps: Eps, z: Tensor, *, steps: int = 50, eta: float = 0.0, noise: Noise | None = None) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16). `eta` 0 is deterministic, 1 as noisy as DDPM.

    The last step ends at abar_0, not at 1, as SD 1.5's scheduler does (set_alpha_to_one false).
    """
    abar_0 = Diffusion().abar[0].item()
    abars = Diffusion().abar.double()
    for i, t, abar, t_prev in _schedule(steps):
        abar_prev = abars[t_prev].item() if t_prev >= 0 else abar_0
        eps_hat = eps(z, t)
        z_0 = (z - math.sqrt(1 - abar) * eps_hat) / math.sqrt(abar)
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        z = math.sqrt(abar_prev) * z_0 + math.sqrt(1 - abar_prev - sigma**2) * eps_hat
        if eta > 0:
            z = z + sigma * noise(i)
        yield z


def ddpm(eps: Eps, z: Tensor, *, steps: int = 50, noise: Noise) -> Iterator[Tensor]:
    """Ancestral sampling (DDPM, equations 6 and 7), on every (1000 // steps)-th timestep, with the small variance."""
    abars = Diffusion().abar.double()
    for i, t, abar, t_prev in _schedule(steps):
        abar_prev = abars[t_prev].item() if t_prev >= 0 else 1.0
        alpha = abar / abar_prev  # of the long step from t to t_prev
        z_0 = (z - math.sqrt(1 - abar) * eps(z, t)) / math.sqrt(abar)
        z = (math.sqrt(abar_prev) * (1 - alpha) * z_0 + math.sqrt(alpha) * (1 - abar_prev) * z) / (1 - abar)
        if t_prev >= 0:
            z = z + math.sqrt((1 - abar_prev) / (1 - abar) * (1 - alpha)) * noise(i)
        yield z


def solver_timesteps(steps: int, *, karras: bool) -> tuple[list[int], list[float]]:
    """Timesteps (steps) and noise levels sigma = sqrt((1 - abar) / abar) (steps + 1, the last 0) of DPM-Solver++.

    Linearly spaced in t, or in sigma^(1/7) (Karras et al. 2022, arXiv 2206.00364, equation 5).
    """
    abar = Diffusion().abar.double().numpy()
    sigma = np.sqrt((1 - abar) / abar)
    if karras:
        ramp = np.linspace(sigma[-1] ** (1 / 7), sigma[0] ** (1 / 7), steps)
        sigmas = ramp**7
        t = np.interp(np.log(sigmas), np.log(sigma), np.arange(1000)).round()
    else:
        t = np.linspace(0, 999, steps + 1).round()[:0:-1]
        sigmas = sigma[t.astype(int)]
    return t.astype(int).tolist(), [*sigmas.tolist(), 0.0]


def dpm_solver(eps: Eps, z: Tensor, *, steps: int = 25, karras: bool = True) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first order at both ends.

    In terms of z_0 predictions m, with lambda = log(alpha / sigma) and h the step in lambda.
    """
    timesteps, levels = solver_timesteps(steps, karras=karras)
    alphas = [1 / math.sqrt(1 + level**2) for level in levels]
    sigmas = [level * alpha for level, alpha in zip(levels, alphas, strict=True)]
    lambdas = [-math.log(level) if level > 0 else math.inf for level in levels]
    m_prev = h_prev = None
    for i, t in enumerate(timesteps):
        m = (z - sigmas[i] * eps(z, t)) / alphas[i]
        h = lambdas[i + 1] - lambdas[i]
        d = m
        if m_prev is not None and i < steps - 1:
            r = h_prev / h
            d = m + (m - m_prev) / (2 * r)
        z = sigmas[i + 1] / sigmas[i] * z - alphas[i + 1] * math.expm1(-h) * d
        m_prev, h_prev = m, h
        yield z
