"""eps(z_t, t) for the samplers: the UNet with its context, guidance and a ControlNet closed around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter import NULL
from prompts import DamageContext
from sd.controlnet import ControlNet
from sd.diffusion import Eps
from sd.inpainting import UNetInPicture
from sd.layers import Context, FixedContext
from sd.unet import UNet

EVERYWHERE = (0, 999)  # all timesteps


@dataclass(frozen=True)
class Control:
    """A ControlNet at work: a condition (B, C, R, R) in [0,1] for each image, and how it counts.

    context: the damage types that it was trained with, which on another checkpoint are not the UNet's.
    """

    net: ControlNet
    context: DamageContext
    condition: Tensor
    scale: float = 1.0  # of the residuals: 0 is the UNet alone
    guidance: float = 1.0  # away from what the empty mask gives

    def residuals(self, z_t: Tensor, t: Tensor, context: Context,
                  condition: Tensor) -> tuple[list[Tensor], Tensor]:
        """The ControlNet's residuals for UNet, scaled."""
        skips, mid = self.net(z_t, t, context, condition)
        return [self.scale * skip for skip in skips], self.scale * mid


def guided(unet: UNet | UNetInPicture, context: DamageContext, class_id: Tensor, guidance: float,
           control: Control | None = None, interval: Sequence[int] = EVERYWHERE) -> Eps:
    """eps(z_t, t) for the classes (B,) given, with classifier-free guidance (Ho & Salimans 2022, 2207.12598).

    eps + (guidance - 1) (eps - eps_null), where eps_null knows no class; likewise, on top, with the control's
    guidance and an empty mask. What has guidance 1 is not computed. Outside of the timesteps `interval`
    nothing guides (Kynkaanniemi et al. 2024, arXiv 2404.07724): it says little there, and costs as much.
    """
    ids, scales = [class_id], []
    conditions = [control.condition] if control else []
    if guidance != 1:
        ids.append(torch.full_like(class_id, NULL))
        scales.append(guidance)
    if control and control.guidance != 1:
        ids.append(class_id)
        scales.append(control.guidance)
        conditions = [control.condition] * (len(ids) - 1) + [torch.zeros_like(control.condition)]
    tokens = _by_parts(context, ids, unet)
    if control:
        own_tokens = _by_parts(control.context, ids, unet)
        condition = torch.cat(conditions).to(unet.dtype)

    def eps(z_t: Tensor, t: int) -> Tensor:
        parts = len(ids) if interval[0] <= t <= interval[1] else 1
        z_t, time = z_t.to(unet.dtype), torch.tensor([t], device=z_t.device)
        z_t = z_t if unet.fast else torch.cat([z_t] * parts)
        residuals = control.residuals(z_t, time, own_tokens[parts], condition[:parts * len(class_id)]
                                      ) if control else None
        eps_hat, *others = unet(z_t, time, tokens[parts], residuals).float().chunk(parts)
        away = [(scale - 1) * (eps_hat - other) for scale, other in zip(scales, others, strict=False)]
        return sum(away, eps_hat)

    return eps


def _by_parts(context: DamageContext, ids: list[Tensor], unet: UNet | UNetInPicture) -> dict[int, Context]:
    """The tokens of the first part alone, and of all of `ids`, by their number."""
    tokens = {parts: context(torch.cat(ids[:parts])).to(unet.dtype) for parts in (1, len(ids))}
    return {parts: FixedContext(made) for parts, made in tokens.items()} if unet.fast else tokens
