"""The UNet that also sees a mask and the picture around it: nine input channels (arXiv 2112.10752, 4.5)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from sd.convolution import Conv2d
from sd.layers import Context, repeated
from sd.unet import UNet
from sd.weights import DEFAULT_BASE, INPAINTING_BASE, TINY, WrongChannels, load_unet

FOLDER = "unet_inpaint"  # in a base of our own, beside unet/
CHANNELS = 9  # noisy latents 4, mask 1, latents of the picture without the masked part 4


class UNetInPicture:
    """A nine-channel UNet with the picture that it paints into, called as one of four channels is.

    cells: latent mask (B,1,h,w), 1 where it paints; z_masked: latents (B,4,h,w) of what is around. z_t may be
    of k times as many pictures, k in a row, as for guidance.
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
    """`unet`, in place, with five more input channels whose weights are zero: it computes what it did."""
    narrow = unet.conv_in
    wide = Conv2d(CHANNELS, narrow.out_channels, 3, padding=1, device="meta")
    weight = narrow.weight.new_zeros(narrow.out_channels, CHANNELS, 3, 3)
    weight[:, :narrow.in_channels] = narrow.weight.detach()
    wide.weight, wide.bias = nn.Parameter(weight, requires_grad=narrow.weight.requires_grad), narrow.bias
    unet.conv_in, unet.config = wide, dataclasses.replace(unet.config, in_channels=CHANNELS)
    return unet


def load_inpainting_unet(base: str, *, device: torch.device | str, dtype: torch.dtype,
                         widened: bool | None = None, precise: tuple[str, ...] = ()) -> tuple[UNet, bool]:
    """The frozen nine-channel UNet that goes with `base`, and whether it had to be widened to that.

    SD 1.5's is that of INPAINTING_BASE; a folder may hold one in unet_inpaint/; `base` may be an inpainting
    model itself. Any other is widened, which a line on stderr says. A checkpoint gives `widened`, so that it
    meets the weights it was trained on. precise, and errors, as for load_unet.
    """
    source = INPAINTING_BASE if base == DEFAULT_BASE else base
    own = (TINY if base == "tiny" else Path(base)) / FOLDER
    if not widened:
        try:
            return load_unet(source, device=device, dtype=dtype, in_channels=CHANNELS,
                             folder=FOLDER if own.is_dir() else "unet", precise=precise), False
        except WrongChannels:
            if widened is not None:
                raise
    unet = load_unet(base, device=device, dtype=dtype, precise=precise)
    if widened is None:
        print(f"{base}: its UNet has four input channels and has never seen a mask. Five more, of zero "
              "weights, are added and trained along; where there is an inpainting model, give that as --base",
              file=sys.stderr)
    return widen(unet), True
