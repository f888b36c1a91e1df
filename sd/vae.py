"""The autoencoder between images and latents (Rombach et al. 2022, section 3.1; KL-regularised, factor 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sd.exact_shortcuts import Conv2d
from sd.layers import Attention, Downsample, GroupNorm, ResnetBlock, Upsample


@dataclass(frozen=True)
class VAEConfig:
    """The defaults are SD 1.5. Names as in the published config.json."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # scaled latents have about unit variance


class MidAttention(Attention):
    """Single-head self-attention over the pixels of a feature map, with its own norm and skip."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__(dim, heads=1, bias=True)
        self.group_norm = GroupNorm(groups, dim, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, dim, H, W) -> (B, dim, H, W)."""
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        return x + super().forward(h, context).transpose(1, 2).unflatten(2, x.shape[2:])


class MidBlock(nn.Module):
    """resnet, attention, resnet at the lowest resolution."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(dim, dim, groups=groups, eps=1e-6) for _ in range(2))
        self.attentions = nn.ModuleList([MidAttention(dim, groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class VAEBlock(nn.Sequential):
    """Resnets at one resolution. Encoder or decoder append the change of resolution."""

    def __init__(self, c_in: int, c_out: int, layers: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.Sequential(*(
            ResnetBlock(c_in if i == 0 else c_out, c_out, groups=groups, eps=1e-6) for i in range(layers)))


class Encoder(nn.Module):
    """image (B, 3, H, W) -> features (B, 2 * latent_channels, H/8, W/8)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.Sequential()
        for level, (c_in, c_out) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            block = VAEBlock(c_in, c_out, config.layers_per_block, groups)
            if level < len(widths) - 1:
                block.downsamplers = nn.Sequential(Downsample(c_out, padding=0))
            self.down_blocks.append(block)
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(self.conv_norm_out.silu(x))


class Decoder(nn.Module):
    """latents (B, latent_channels, H/8, W/8) -> image (B, 3, H, W)."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.Sequential()
        for level, (c_in, c_out) in enumerate(zip((widths[0], *widths[:-1]), widths, strict=True)):
            block = VAEBlock(c_in, c_out, config.layers_per_block + 1, groups)
            if level < len(widths) - 1:
                block.upsamplers = nn.Sequential(Upsample(c_out))
            self.up_blocks.append(block)
        self.conv_norm_out = GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(self.conv_norm_out.silu(x))


class VAE(nn.Module):
    """Owns the scaling factor: `encode` returns scaled latents, `decode` takes them."""

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = Conv2d(config.latent_channels, config.latent_channels, 1)

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W) in [-1, 1] -> mean and std of z_0, both scaled, (B, 4, H/8, W/8)."""
        mean, log_variance = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        return mean * self.config.scaling_factor, std * self.config.scaling_factor

    def encode(self, image: Tensor, noise: Tensor) -> Tensor:
        """image (B, 3, H, W) in [-1, 1] -> a posterior sample z_0, scaled; noise: N(0, 1), z_0's shape."""
        mean, std = self.posterior(image)
        return mean + std * noise

    def decode(self, z_0: Tensor) -> Tensor:
        """Scaled latents z_0 (B, 4, H/8, W/8) -> image (B, 3, H, W), about in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(z_0 / self.config.scaling_factor))
