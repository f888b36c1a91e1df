"""The noise predictor of Stable Diffusion 1.5 (Rombach et al. 2022, arXiv 2112.10752)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sd.exact_shortcuts import Context, Conv2d, repeated
from sd.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    SpatialTransformer,
    TimestepEmbedding,
    Upsample,
    timestep_embedding,
)

Control = tuple[list[Tensor], Tensor]  # a ControlNet's residuals for the skips and for the middle block


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
    """Resnet blocks. A transformer follows each of the first `transformers` of them. See layers_of.

    channels: (c_in, c_out) of each resnet. The change of resolution is attached by encoder or decoder.
    """

    def __init__(self, config: UNetConfig, channels: list[tuple[int, int]], transformers: int) -> None:
        super().__init__()
        time_dim, groups = 4 * config.block_out_channels[0], config.norm_num_groups
        self.resnets = nn.ModuleList(
            ResnetBlock(c_in, c_out, groups=groups, eps=1e-5, time_dim=time_dim) for c_in, c_out in channels)
        if transformers:
            self.attentions = nn.ModuleList(
                SpatialTransformer(dim, config.attention_head_dim, config.cross_attention_dim, groups=groups)
                for _, dim in channels[:transformers])


def layers_of(block: nn.Module) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """(resnet, transformer or None) of a UNetBlock, in the order of computation."""
    return zip_longest(block.get_submodule("resnets").children(), getattr(block, "attentions", []))


class UNetEncoder(nn.Module):
    """The first half of the UNet, down to the middle block. ControlNet is this half with its own outputs."""

    fast, checkpointing = True, False  # set by set_fast and set_checkpointing in sd/exact_shortcuts.py

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
            block = UNetBlock(config, channels, 0 if last else len(channels))
            if not last:
                block.downsamplers = nn.ModuleList([Downsample(c_out)])
            self.down_blocks.append(block)
        self.mid_block = UNetBlock(config, [(widths[-1], widths[-1])] * 2, 1)

    def run(self, module: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """module(*inputs); with `checkpointing`, the backward pass recomputes its activations."""
        if self.checkpointing and torch.is_grad_enabled():
            # Nothing in a block draws from torch's generators, so none is saved and set back.
            return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
        return module(*inputs)

    def run_layer(self, resnet: nn.Module, transformer: nn.Module | None, h: Tensor, time: Tensor,
                  context: Context) -> Tensor:
        """A resnet and the transformer behind it, if there is one."""
        h = self.run(resnet, h, time)
        return h if transformer is None else self.run(transformer, h, context)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the computation. conv_in may be fp32: it is trained in a widened UNet."""
        return self.time_embedding.linear_1.weight.dtype

    def embed_time(self, t: Tensor) -> Tensor:
        """t (B,) integer timesteps -> (B, 4 * block_out_channels[0])."""
        return self.time_embedding(timestep_embedding(t, self.config.block_out_channels[0]).to(self.dtype))

    def encode(self, h: Tensor, time: Tensor, context: Context) -> tuple[Tensor, list[Tensor]]:
        """conv_in's output (B, C, H, W) -> the middle block's output and one skip a layer, (kB, ..) each.

        Layers before the first attention to the context (kB, L, cross_attention_dim) run once for all k.
        """
        skips = [h]
        for block in self.down_blocks:
            for layer in layers_of(block):
                h = self.run_layer(*layer, h, time, context)
                skips.append(h)
            for downsample in getattr(block, "downsamplers", []):
                h = downsample(h)
                skips.append(h)
        for layer in layers_of(self.mid_block):
            h = self.run_layer(*layer, h, time, context)
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
            block = UNetBlock(config, channels, len(channels) if level < len(widths) - 1 else 0)
            if level > 0:
                block.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[0], eps=1e-5)
        self.conv_out = Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, z_t: Tensor, t: Tensor, context: Context, control: Control | None = None) -> Tensor:
        """Predict the noise in z_t.

        z_t: (B, in_channels, H, W) latents, H and W multiples of 8; t: (B,) integer timesteps in 0..999, or
        (1,) for all; context: (B, L, cross_attention_dim), any L >= 1; with t (1,) it may hold k contexts a
        latent, (kB, L, ..), for guidance. Returns eps_hat (B or kB, out_channels, H, W) in the precision of
        the weights; z_t and context may have another.
        """
        time = self.embed_time(t)
        context = context.to(self.dtype) if isinstance(context, Tensor) else context
        h, skips = self.encode(self.conv_in(z_t.to(self.dtype)), time, context)
        if control is not None:
            skip_residuals, mid_residual = control
            skips = [s + r for s, r in zip(skips, skip_residuals, strict=True)]
            h = h + mid_residual
        for block in self.up_blocks:
            for layer in layers_of(block):
                h = self.run_layer(*layer, torch.cat([h, skips.pop()], dim=1), time, context)
            for upsample in getattr(block, "upsamplers", []):
                h = upsample(h)
        return self.conv_out(self.conv_norm_out.silu(h))
