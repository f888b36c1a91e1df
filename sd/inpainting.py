"""The nine-channel inpainting UNet: it also sees a mask and the image around it (arXiv 2112.10752, 4.5)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from sd.exact_shortcuts import Context, Conv2d, repeated
from sd.unet import UNet

CHANNELS = 9  # noisy latents 4, mask 1, latents of the image without the masked part 4


class UNetInPicture:
    """A nine-channel UNet with the image it paints into, called like a UNet of four channels.

    cells: latent mask (B,1,h,w), 1 where it paints; z_masked: latents (B,4,h,w) of the image around. z_t may
    hold k times as many images, in k equal parts, as guidance needs.
    """

    def __init__(self, unet: UNet, cells: Tensor, z_masked: Tensor) -> None:
        self.unet, self.dtype, self.fast = unet, unet.dtype, unet.fast
        self.picture = torch.cat([cells, z_masked], dim=1)

    def __call__(self, z_t: Tensor, t: Tensor, context: Context,
                 control: tuple[list[Tensor], Tensor] | None = None) -> Tensor:
        """As UNet's forward."""
        picture = repeated(self.picture, len(z_t)).to(z_t.dtype)
        return self.unet(torch.cat([z_t, picture], dim=1), t, context, control)


def widen(unet: UNet) -> UNet:
    """`unet`, in place, with five more input channels of zero weights: its output does not change."""
    narrow = unet.conv_in
    wide = Conv2d(CHANNELS, narrow.out_channels, 3, padding=1, device="meta")
    weight = narrow.weight.new_zeros(narrow.out_channels, CHANNELS, 3, 3)
    weight[:, :narrow.in_channels] = narrow.weight.detach()
    wide.weight, wide.bias = nn.Parameter(weight, requires_grad=narrow.weight.requires_grad), narrow.bias
    unet.conv_in, unet.config = wide, dataclasses.replace(unet.config, in_channels=CHANNELS)
    return unet
