"""ControlNet (Zhang et al. 2023, arXiv 2302.05543): spatial conditioning of a frozen UNet by an image.

It is a second copy of the UNet's encoder. A small encoder of the condition image is added to its input, and
each of its outputs passes a 1x1 convolution. These start at zero, so at first nothing changes.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.exact_shortcuts import Context, Conv2d, repeated
from sd.unet import Control, UNet, UNetConfig, UNetEncoder


@dataclass(frozen=True)
class ControlNetConfig(UNetConfig):
    """The defaults are the published ControlNets of SD 1.5. Names as in their config.json."""

    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)


class ConditionEncoder(nn.Module):
    """The condition image, at full resolution -> features at the latents' resolution."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = Conv2d(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for c_in, c_out in pairwise(widths):
            self.blocks += [Conv2d(c_in, c_in, 3, padding=1), Conv2d(c_in, c_out, 3, padding=1, stride=2)]
        self.conv_out = Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1)

    def forward(self, condition: Tensor) -> Tensor:
        """condition (B, conditioning_channels, 8H, 8W) -> (B, block_out_channels[0], H, W)."""
        h = F.silu(self.conv_in(condition))
        for conv in self.blocks:
            h = F.silu(conv(h))
        return self.conv_out(h)


class ControlNet(UNetEncoder):
    """control = ControlNet(z_t, t, context, condition): the residuals for UNet's argument `control`."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig | None = None) -> None:
        config = config or ControlNetConfig()
        super().__init__(config)
        self.controlnet_cond_embedding = ConditionEncoder(config)
        self.controlnet_down_blocks = nn.ModuleList(Conv2d(c, c, 1) for c in config.skip_channels)
        dim = config.block_out_channels[-1]
        self.controlnet_mid_block = Conv2d(dim, dim, 1)

    def forward(self, z_t: Tensor, t: Tensor, context: Context, condition: Tensor) -> Control:
        """Residuals for the UNet's skips, in their order, and for its middle block.

        z_t: (B, 4, H, W) noisy latents; t: (B,); context: (B, L, cross_attention_dim); condition: (B,
        conditioning_channels, 8H, 8W) in [0,1]. With t (1,), k contexts a latent, and k or 1 conditions.
        """
        features = self.controlnet_cond_embedding(condition)
        h = repeated(self.conv_in(z_t), len(features)) + features
        h, skips = self.encode(h, self.embed_time(t), context)
        residuals = [conv(skip) for conv, skip in zip(self.controlnet_down_blocks, skips, strict=True)]
        return residuals, self.controlnet_mid_block(h)


def copy_encoder(unet: UNet, condition_channels: int, rng: torch.Generator, *,
                 share: bool = False) -> ControlNet:
    """A new ControlNet on a copy of `unet`'s encoder. Its residuals are zero until it is trained.

    unet: without adapters; of a nine-channel conv_in, the noisy latents' weights are copied. share: use the
    UNet's own tensors, not fp32 copies, for a frozen encoder. The condition encoder (fp32) comes from `rng`
    and keeps the variance (He et al. 2015, arXiv 1502.01852, equation 10); zero convolutions follow it.
    """
    config = ControlNetConfig(**dataclasses.asdict(unet.config) | {"in_channels": 4},
                              conditioning_channels=condition_channels)
    with torch.device("meta"):
        control = ControlNet(config)
    state: dict[str, Tensor] = {}
    copied = unet.state_dict()
    for name, tensor in control.state_dict().items():
        if name in copied:
            weight = copied[name][:, :4] if name == "conv_in.weight" else copied[name]
            state[name] = weight if share else weight.to(torch.float32, copy=True)
            continue
        weight = torch.zeros(tensor.shape)
        if tensor.ndim == 4 and name.startswith("controlnet_cond_embedding") and "conv_out" not in name:
            weight.normal_(std=math.sqrt(2 / tensor[0].numel()), generator=rng)
        state[name] = weight.to(unet.conv_in.weight.device)
    control.load_state_dict(state, assign=True)
    return control
