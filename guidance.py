"""eps(z_t, t) for the samplers: the UNet with its context, guidance and a ControlNet closed around it."""

from __future__ import annotations

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
           control: Control | None = None) -> Eps:
    """eps(z_t, t) for the classes (B,) given, with classifier-free guidance (Ho & Salimans 2022, 2207.12598).

    eps + (guidance - 1) (eps - eps_null), where eps_null knows no class; likewise, on top, with the control's
    guidance and an empty mask. What has guidance 1 is not computed.
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
    dtype = unet.conv_in.weight.dtype
    tokens = FixedContext(context(torch.cat(ids)).to(dtype))
    if control:
        own_tokens = FixedContext(control.context(torch.cat(ids)).to(dtype))
        condition = torch.cat(conditions).to(dtype)

    def eps(z_t: Tensor, t: int) -> Tensor:
        z_t, time = z_t.to(dtype), torch.tensor([t], device=z_t.device)
        residuals = control.residuals(z_t, time, own_tokens, condition) if control else None
        eps_hat, *others = unet(z_t, time, tokens, residuals).float().chunk(len(ids))
        away = [(scale - 1) * (eps_hat - other) for scale, other in zip(scales, others, strict=True)]
        return sum(away, eps_hat)

    return eps
