"""The nine-channel inpainting UNet that belongs to a base."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sd.inpainting import CHANNELS, widen
from sd.pretrained.weights import DEFAULT_BASE, INPAINTING_BASE, TINY, WrongChannels, load_unet
from sd.unet import UNet

FOLDER = "unet_inpaint"  # in a base folder of this project, beside unet/


def load_inpainting_unet(base: str, *, device: torch.device | str, dtype: torch.dtype,
                         widened: bool | None = None, precise: tuple[str, ...] = ()) -> tuple[UNet, bool]:
    """The frozen nine-channel UNet for `base`, and whether its first layer had to be widened.

    The UNet is INPAINTING_BASE's for SD 1.5, unet_inpaint/ in a folder, or `base` itself where that is an
    inpainting model. Any other is widened, and a line on stderr says so. A checkpoint passes `widened`, to
    get the weights it was trained on. precise and errors: as for load_unet.
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
        print(f"{base}: its UNet has four input channels and was never trained on masks. Five channels of "
              "zero weights are added and trained as well; if there is an inpainting model, give it as "
              "--base", file=sys.stderr)
    return widen(unet), True
