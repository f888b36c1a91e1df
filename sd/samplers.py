"""Noising and denoising: the forward process of DDPM, and the samplers DDPM, DDIM and DPM-Solver++(2M).

A sampler takes one callable eps(z_t, t) -> eps_hat and yields z after each step; the last one is z_0.
Guidance, ControlNet and inpainting live inside that callable. `noise(i)` is the standard normal noise of step
i; `start` skips the first steps. abar is the cumulative product of 1 - beta (DDPM, arXiv 2006.11239).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

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
    """981, 961, .., 1 for 50 steps, as in SD 1.5. Some numbers of steps begin far below T (400: at 799)."""
    if not 1 <= steps <= T:
        raise ValueError(f"{steps} sampling steps: 1 to {T} are possible")
    return [i * (T // steps) + (steps < T) for i in reversed(range(steps))]  # T steps: no room for + 1


def _leading(steps: int, end: float) -> list[tuple[int, float, float]]:
    """(t, abar_t, abar at the next timestep) of each leading step; after the last one abar is `end`."""
    abar, timesteps = Diffusion().abar.tolist(), leading_timesteps(steps)
    return [(t, abar[t], abar[after] if after is not None else end)
            for t, after in zip(timesteps, [*timesteps[1:], None], strict=True)]


def ddim(eps: Eps, z: Tensor, *, steps: int = 50, eta: float = 0.0, noise: Noise | None = None,
         start: int = 0) -> Iterator[Tensor]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16).

    eta: 0 is deterministic, 1 as noisy as DDPM. The last step ends at abar_0, as in SD 1.5's scheduler.
    """
    for i, (t, abar, abar_prev) in list(enumerate(_leading(steps, Diffusion().abar[0].item())))[start:]:
        eps_hat = eps(z, t)
        z_0 = (z - math.sqrt(1 - abar) * eps_hat) / math.sqrt(abar)
        sigma = eta * math.sqrt((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev))
        z = math.sqrt(abar_prev) * z_0 + math.sqrt(1 - abar_prev - sigma**2) * eps_hat
        if noise is not None and eta > 0:
            z = z + sigma * noise(i)
        yield z


def ddpm(eps: Eps, z: Tensor, *, steps: int = 50, noise: Noise, start: int = 0) -> Iterator[Tensor]:
    """Ancestral sampling (DDPM, equations 6, 7 and 15) on the leading timesteps, with the small variance."""
    for i, (t, abar, abar_prev) in list(enumerate(_leading(steps, 1.0)))[start:]:
        alpha = abar / abar_prev  # of the long step from t to the next timestep
        z_0 = (z - math.sqrt(1 - abar) * eps(z, t)) / math.sqrt(abar)
        z = (math.sqrt(abar_prev) * (1 - alpha) * z_0 + math.sqrt(alpha) * (1 - abar_prev) * z) / (1 - abar)
        sigma = math.sqrt((1 - abar_prev) / (1 - abar) * (1 - alpha))  # 0 in the last step
        z = z + sigma * noise(i)
        yield z


def solver_timesteps(steps: int, *, karras: bool) -> tuple[list[int], list[float]]:
    """The timesteps (steps) and noise levels (steps + 1, the last 0) of DPM-Solver++.

    A level is sqrt((1 - abar) / abar). With `karras` the levels to the power 1/7 are evenly spaced (arXiv
    2206.00364, equation 5), each at the nearest timestep; otherwise the timesteps are.
    """
    most = T if karras else T - 1  # the evenly spaced timesteps end before 0
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} sampling steps: 1 to {most} are possible")
    abar = Diffusion().abar.double().numpy()
    level = np.sqrt((1 - abar) / abar)  # of each timestep
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
    alpha, sigma = zip(*((1 / math.sqrt(1 + x**2), x / math.sqrt(1 + x**2)) for x in levels), strict=True)
    lambda_ = [-math.log(level) for level in levels[:-1]] + [math.inf]
    m_prev, h_prev = z, 1.0  # not used in the first step
    for i, t in list(enumerate(timesteps))[start:]:
        m = (z - sigma[i] * eps(z, t)) / alpha[i]
        h = lambda_[i + 1] - lambda_[i]
        d = m + h / (2 * h_prev) * (m - m_prev) if start < i < steps - 1 else m
        z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * math.expm1(-h) * d
        m_prev, h_prev = m, h
        yield z


class Sampler(NamedTuple):
    """One row of SAMPLERS."""
    run: Callable[..., Iterator[Tensor]]
    takes: tuple[str, ...]  # which of eta and noise
    abar: Callable[[int], list[float]]  # steps -> abar of the z that each step starts from
    most_steps: int = T


SAMPLERS = {
    "ddim": Sampler(ddim, ("eta", "noise"), lambda steps: [abar for _, abar, _ in _leading(steps, 1.0)]),
    "ddpm": Sampler(ddpm, ("noise",), lambda steps: [abar for _, abar, _ in _leading(steps, 1.0)]),
    "dpm++": Sampler(dpm_solver, (), lambda n: [1 / (1 + x**2) for x in solver_timesteps(n, karras=True)[1]]),
    "dpm++linspace": Sampler(partial(dpm_solver, karras=False), (), lambda n: [
        1 / (1 + x**2) for x in solver_timesteps(n, karras=False)[1]], most_steps=T - 1)}
