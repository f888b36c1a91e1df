"""Noising and denoising: DDPM's forward process, and the samplers DDPM, DDIM and DPM-Solver++(2M).

A sampler takes one callable eps(z_t, t) -> eps_hat and yields z after each step; the last one is z_0.
Guidance, ControlNet and inpainting live inside that callable. `noise(i)` gives the standard normal noise of
step i. `start` leaves out the first steps, for a z that is noised no further than where the next begins
(`first_abar`). Symbols: abar is the cumulative product of alpha = 1 - beta (DDPM, Ho et al. 2020, arXiv
2006.11239).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

Eps = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]
T = 1000  # timesteps of the schedule, 0 .. T - 1


class Diffusion:
    """SD 1.5's noise schedule: T betas, linear in their square roots from 0.00085 to 0.012."""

    def __init__(self) -> None:
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float32) ** 2
        self.abar = torch.cumprod(1 - beta, dim=0)

    def add_noise(self, z_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps (DDPM, equation 4). z_0, eps (B, C, H, W); t (B,)."""
        abar = self.abar.to(z_0.device)[t][:, None, None, None]
        return (abar.sqrt() * z_0 + (1 - abar).sqrt() * eps).to(z_0.dtype)


def leading_timesteps(steps: int) -> list[int]:
    """981, 961, .., 1 for 50 steps: every (T // steps)-th timestep, shifted by one, from noisy to clean.

    SD 1.5's own spacing. Few steps begin far below T (10: 901, 2: 501), and so do many that do not divide it
    (400: 799, 600: 600), although z is pure noise there.
    """
    if not 1 <= steps <= T:
        raise ValueError(f"{steps} sampling steps: 1 to {T} are possible")
    shift = 1 if steps < T else 0  # the whole chain, 999 .. 0, leaves no room for the shift
    return [i * (T // steps) + shift for i in reversed(range(steps))]


def _leading(steps: int, end: float) -> list[tuple[int, float, float]]:
    """(t, abar_t, abar at the next timestep) of each leading step; after the last one abar is `end`."""
    abar = Diffusion().abar.tolist()
    timesteps = leading_timesteps(steps)
    after = [abar[t] for t in timesteps[1:]] + [end]
    return [(t, abar[t], abar_prev) for t, abar_prev in zip(timesteps, after, strict=True)]


def first_abar(steps: int, start: int) -> float:
    """abar of the z that ddim or ddpm takes with `start`."""
    return Diffusion().abar[leading_timesteps(steps)[start]].item()


def ddim(eps: Eps, z: Tensor, *, steps: int = 50, eta: float = 0.0, noise: Noise | None = None,
         start: int = 0) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16).

    `eta` 0 is deterministic, 1 as noisy as DDPM; above 0 it needs `noise`. The last step ends at abar_0, not
    at 1, as SD 1.5's scheduler does (set_alpha_to_one false).
    """
    abar_0 = Diffusion().abar[0].item()
    for i, (t, abar, abar_prev) in list(enumerate(_leading(steps, end=abar_0)))[start:]:
        eps_hat = eps(z, t)
        z_0 = (z - math.sqrt(1 - abar) * eps_hat) / math.sqrt(abar)
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        z = math.sqrt(abar_prev) * z_0 + math.sqrt(1 - abar_prev - sigma**2) * eps_hat
        if eta > 0:
            z = z + sigma * noise(i)
        yield z


def ddpm(eps: Eps, z: Tensor, *, steps: int = 50, noise: Noise, start: int = 0) -> Iterator[Tensor]:
    """Ancestral sampling (DDPM, equations 6, 7 and 15) on the leading timesteps, with the small variance."""
    for i, (t, abar, abar_prev) in list(enumerate(_leading(steps, end=1.0)))[start:]:
        alpha = abar / abar_prev  # of the long step from t to the next timestep
        z_0 = (z - math.sqrt(1 - abar) * eps(z, t)) / math.sqrt(abar)
        z = (math.sqrt(abar_prev) * (1 - alpha) * z_0 + math.sqrt(alpha) * (1 - abar_prev) * z) / (1 - abar)
        sigma = math.sqrt((1 - abar_prev) / (1 - abar) * (1 - alpha))  # 0 in the last step
        z = z + sigma * noise(i)
        yield z


def solver_timesteps(steps: int, *, karras: bool) -> tuple[list[int], list[float]]:
    """The timesteps (steps) and noise levels (steps + 1, the last 0) of DPM-Solver++.

    A level is sqrt((1 - abar) / abar). Linearly spaced are the levels to the power 1/7 (Karras et al. 2022,
    arXiv 2206.00364, equation 5), each with the timestep nearest to it; without `karras`, the timesteps.
    """
    most = T if karras else T - 1  # timestep 0 is the end of the linear ones, not one of them
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} sampling steps: 1 to {most} are possible")
    abar = Diffusion().abar.double().numpy()
    level = np.sqrt((1 - abar) / abar)
    if karras:
        levels = np.linspace(level[-1] ** (1 / 7), level[0] ** (1 / 7), steps) ** 7
        t = np.interp(np.log(levels), np.log(level), np.arange(T)).round().astype(int)
    else:
        t = np.linspace(0, T - 1, steps + 1).round().astype(int)[:0:-1]
        levels = level[t]
    return t.tolist(), [*levels.tolist(), 0.0]


def dpm_solver(eps: Eps, z: Tensor, *, steps: int = 25, karras: bool = True,
               start: int = 0) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); first order at both ends.

    m predicts z_0, and h is the step in lambda = log(alpha / sigma); alpha^2 + sigma^2 = 1.
    """
    timesteps, levels = solver_timesteps(steps, karras=karras)
    alpha = [1 / math.sqrt(1 + level**2) for level in levels]
    sigma = [level / math.sqrt(1 + level**2) for level in levels]
    lambda_ = [-math.log(level) for level in levels[:-1]] + [math.inf]
    m_prev, h_prev = z, 1.0  # not used in the first step
    for i, t in list(enumerate(timesteps))[start:]:
        m = (z - sigma[i] * eps(z, t)) / alpha[i]
        h = lambda_[i + 1] - lambda_[i]
        second_order = start < i < steps - 1
        d = m + h / (2 * h_prev) * (m - m_prev) if second_order else m
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * math.expm1(-h) * d
        m_prev, h_prev = m, h
        yield z
