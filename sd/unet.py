"""The noise predictor of Stable Diffusion 1.5 (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sd.convolution import Conv2d
from sd.layers import (
    Context,
    Downsample,
    GroupNorm,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    repeated,
    timestep_embedding,
)


@dataclass(frozen=True)
class UNetConfig:
    """The defaults are SD 1.5; `in_channels` 9: its inpainting model. Names as in the published config."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    attention_head_dim: int = 8  # the number of heads: the published file's name for it is wrong
    norm_num_groups: int = 32

    @property
    def skip_channels(self) -> list[int]:
        """Channels of the skips in the order in which the encoder makes them."""
        channels = [self.block_out_channels[0]]
        for level, width in enumerate(self.block_out_channels):
            channels += [width] * (self.layers_per_block + (level < len(self.block_out_channels) - 1))
        return channels


class UNetBlock(nn.Module):
    """Resnets, each followed by a transformer where the level has attention, then a change of resolution."""

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], *, attention: bool) -> None:
        super().__init__()
        time_dim, groups = 4 * config.block_out_channels[0], config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in, c_out, groups=groups, eps=1e-5, time_dim=time_dim) for c_in, c_out in channels)
        if attention:
            self.attentions = nn.ModuleList(
                SpatialTransformer(c_out, config.attention_head_dim, config.cross_attention_dim,
                                   groups=groups)
                for _, c_out in channels)

    def layers(self) -> list[tuple[nn.Module, nn.Module | None]]:
        """(resnet, transformer or None), in the order of computation."""
        transformers = getattr(self, "attentions", [None] * len(self.resnets))
        return list(zip(self.resnets, transformers, strict=True))


class MidBlock(nn.Module):
    """resnet, transformer, resnet at the lowest resolution; UNetEncoder.encode runs them one by one."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        dim, groups = config.block_out_channels[-1], config.norm_num_groups
        time_dim = 4 * config.block_out_channels[0]
        self.resnets = nn.ModuleList(
            ResnetBlock(dim, dim, groups=groups, eps=1e-5, time_dim=time_dim) for _ in range(2))
        self.attentions = nn.ModuleList(
            [SpatialTransformer(dim, config.attention_head_dim, config.cross_attention_dim, groups=groups)])


class UNetEncoder(nn.Module):
    """The first half of the UNet, down to the middle block. ControlNet is this half with its own outputs."""

    fast = True  # as in sd/layers.py
    checkpointing = False  # recompute blocks in the backward pass: less memory, a third more work

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.down_blocks = nn.ModuleList()
        for level, (c_in, c_out) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            last = level == len(widths) - 1
            channels = [(c_in if i == 0 else c_out, c_out) for i in range(config.layers_per_block)]
            block = UNetBlock(config, channels, attention=not last)
            if not last:
                block.downsamplers = nn.ModuleList([Downsample(c_out)])
            self.down_blocks.append(block)
        self.mid_block = MidBlock(config)

    def run(self, module: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """module(*inputs), without keeping its activations where `checkpointing` is on."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(module, *inputs, use_reentrant=False)
        return module(*inputs)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in. (Not conv_in's, which is fp32 where it is trained beside a half UNet.)"""
        return self.time_embedding.linear_1.weight.dtype

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B,) integer timesteps -> (B, 4 * block_out_channels[0])."""
        return self.time_embedding(timestep_embedding(t, self.config.block_out_channels[0]).to(self.dtype))

    def encode(self, h: Tensor, time: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """conv_in's output (B, C, H, W) -> the middle block's output and the skips, one a layer: (kB, ..).

        All before the first attention to the context (kB, L, cross_attention_dim) is computed once for all k.
        """
        skips = [h]
        for block in self.down_blocks:
            for resnet, transformer in block.layers():
                h = self.run(resnet, h, time)
                if transformer is not None:
                    h = self.run(transformer, h, context)
                skips.append(h)
            for downsample in getattr(block, "downsamplers", []):
                h = downsample(h)
                skips.append(h)
        h = self.run(self.mid_block.resnets[0], h, time)
        h = self.run(self.mid_block.attentions[0], h, context)
        h = self.run(self.mid_block.resnets[1], h, time)
        return h, [repeated(skip, len(h)) for skip in skips]


class UNet(UNetEncoder):
    """eps_hat = UNet(z_t, t, context)."""

    def __init__(self, config: UNetConfig | None = None) -> None:
        config = config or UNetConfig()
        super().__init__(config)
        widths, depth = config.block_out_channels, config.layers_per_block
        skip_channels = config.skip_channels  # the decoder takes them back from the end
        self.up_blocks, c = nn.ModuleList(), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            channels = []
            for _ in range(depth + 1):
                channels.append((c + skip_channels.pop(), width))
                c = width
            block = UNetBlock(config, channels, attention=level < len(widths) - 1)
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, z_t: Tensor, t: Tensor, context: Context,
                control: tuple[list[Tensor], Tensor] | None = None) -> Tensor:
        """Predict the noise in z_t.

        z_t: (B, in_channels, H, W) latents, H and W multiples of 8; t: (B,) integer timesteps in 0..999, or
        (1,), the same for all; context: (B, L, cross_attention_dim), any L >= 1, or with t (1,) k of these in
        a row, as for guidance; control: a ControlNet's residuals for the skips and for the middle block
        (sd/controlnet.py). Returns eps_hat (B, out_channels, H, W), or k of these in a row, in the precision
        of the weights; z_t and context may have another.
        """
        time = self.embed_time(t)
        context = context.to(self.dtype) if isinstance(context, Tensor) else context
        h, skips = self.encode(self.conv_in(z_t.to(self.dtype)), time, context)
        if control is not None:
            skip_residuals, mid_residual = control
            skips = [s + r for s, r in zip(skips, skip_residuals, strict=True)]
            h = h + mid_residual
        for block in self.up_blocks:
            for resnet, transformer in block.layers():
                h = self.run(resnet, torch.cat([h, skips.pop()], dim=1), time)
                if transformer is not None:
                    h = self.run(transformer, h, context)
            for upsample in getattr(block, "upsamplers", []):
                h = upsample(h)
        return self.conv_out(self.conv_norm_out.silu(h))
