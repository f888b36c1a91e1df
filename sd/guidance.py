"""eps(z_t, t) for the samplers: a closure around the UNet, its context, guidance and a ControlNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sd.controlnet import ControlNet
from sd.exact_shortcuts import Context, FixedContext
from sd.inpainting import UNetInPicture
from sd.samplers import Eps
from sd.unet import UNet

ALL_TIMESTEPS = (0, 999)


class Contexts(NamedTuple):
    """The context of each image and the null context that guidance starts from, both (B, N, dim)."""

    damage: Tensor
    null: Tensor


@dataclass(frozen=True)
class ControlCondition:
    """A ControlNet with the condition of each image."""

    net: ControlNet
    contexts: Contexts  # of the damage types it was trained with, which may differ from the UNet's
    condition: Tensor  # (B, C, R, R) in [0,1]
    scale: float = 1.0  # of the residuals; 0 is the UNet alone
    guidance: float = 1.0  # away from the prediction for an empty mask


def guided(unet: UNet | UNetInPicture, contexts: Contexts, guidance: float,
           control: ControlCondition | None = None, interval: Sequence[int] = ALL_TIMESTEPS) -> Eps:
    """eps(z_t, t) with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

    eps + (guidance - 1) (eps - eps_null), plus the same term for the control's guidance and an empty mask.
    A term of scale 1 is not computed. Outside the timesteps `interval` nothing guides (arXiv 2404.07724).
    """
    control = control if control and control.scale else None
    null, empty, scales = [False], [False], []  # the first part of the batch is the prediction itself
    if guidance != 1:
        null, empty, scales = [*null, True], [*empty, False], [guidance]
    if control and control.guidance != 1:
        null, empty, scales = [*null, False], [*empty, True], [*scales, control.guidance]
    tokens, batch = _by_parts(contexts, null, unet), len(contexts.damage)
    if control:
        own_tokens = _by_parts(control.contexts, null, unet)
        condition = torch.cat([control.condition * (not part) for part in empty]).to(unet.dtype)

    def eps(z_t: Tensor, t: int) -> Tensor:
        """(B,4,h,w), timestep -> (B,4,h,w) fp32."""
        parts = len(null) if interval[0] <= t <= interval[1] else 1
        z_t, time = z_t.to(unet.dtype), torch.full((1,), t, device=z_t.device)
        # Fast: one z_t for all parts, whose layers before the first context run once (UNetEncoder.encode).
        z_t = z_t if unet.fast else torch.cat([z_t] * parts)
        residuals = None
        if control:
            residuals = control.net(z_t, time, own_tokens[parts], condition[:parts * batch])
            if control.scale != 1:
                residuals = [control.scale * skip for skip in residuals[0]], control.scale * residuals[1]
        eps_hat, *others = unet(z_t, time, tokens[parts], residuals).float().chunk(parts)
        return sum([(scale - 1) * (eps_hat - other) for scale, other in zip(scales, others, strict=False)],
                   eps_hat)

    return eps


def _by_parts(contexts: Contexts, null: list[bool], unet: UNet | UNetInPicture) -> dict[int, Context]:
    """The context of the first part alone and of all parts, by their number."""
    tokens = {parts: torch.cat([contexts[part] for part in null[:parts]]).to(unet.dtype)
              for parts in (1, len(null))}
    return {parts: FixedContext(made) if unet.fast else made for parts, made in tokens.items()}
