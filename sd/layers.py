"""Building blocks of UNet, ControlNet and VAE. Modules are named after the published checkpoint's keys.

What comes from sd.exact_shortcuts computes the same in less time or memory; with `fast` off, every layer is
computed as written here. `repeated(x, n)` is x as often as makes n rows of its batch.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sd.exact_shortcuts import Context, Conv2d, FixedContext, Gated, Recomputed, cross_attention, repeated


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of the integer timesteps t (B,) -> (B, dim) fp32, cosines first (as SD 1.5 was trained).

    "Attention is all you need", section 3.5; the frequencies are 10000^(-i / (dim/2)), i = 0 .. dim/2 - 1.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angle = t.float()[:, None] * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class TimestepEmbedding(nn.Module):
    """(B, C) sinusoids -> (B, 4C), the conditioning that every resnet block of the UNet receives."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, out_dim)
        self.linear_2 = nn.Linear(out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu and He 2018, arXiv 1803.08494)."""

    fast, lean = True, False  # set by set_fast and set_checkpointing in sd/exact_shortcuts.py

    def silu(self, x: Tensor) -> Tensor:
        """SiLU(GroupNorm(x)); with `lean`, only x is kept for the backward pass."""
        if self.fast and self.lean:
            return Recomputed.apply(self._silu, x, self.weight, self.bias)
        return self._silu(x, self.weight, self.bias)

    def _silu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.group_norm(x, self.num_groups, weight, bias, self.eps)
        return F.silu(y, inplace=not torch.is_grad_enabled())


class ResnetBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice, with a skip. `time_dim` None: no time conditioning (the VAE)."""

    def __init__(self, c_in: int, c_out: int, *, groups: int, eps: float,
                 time_dim: int | None = None) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, c_in, eps=eps)
        self.conv1 = Conv2d(c_in, c_out, 3, padding=1)
        if time_dim is not None:
            self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = GroupNorm(groups, c_out, eps=eps)
        self.conv2 = Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, c_in, H, W), time (B, time_dim) -> (B, c_out, H, W)."""
        h = self.conv1(self.norm1.silu(x))
        if time is not None:
            h = h + self.time_emb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(self.norm2.silu(h))
        return self.conv_shortcut(x) + h


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over `heads` heads; keys and values from a context, or from x itself."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, *, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim, bias=bias)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=bias)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])  # a list, because the published key is to_out.0

    def _split(self, y: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, N, dim / heads)."""
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, L, context_dim) -> keys and values, each (B, heads, L, dim / heads)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries from x (B, N, dim) -> (B, N, dim)."""
        q = self._split(self.to_q(x))
        return self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, dim) attends to context (B, L, context_dim), or to itself -> (B, N, dim)."""
        return self.attend(x, *self.keys_values(x if context is None else context))


class GEGLU(nn.Module):
    """value * gelu(gate), both halves from one projection (Shazeer 2020, arXiv 2002.05202)."""

    fast = True

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        both = self.proj(x)
        if self.fast:
            return Gated.apply(both)
        value, gate = both.chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """The transformer's feed-forward layer. net.1 takes the place of the published code's dropout of 0."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward; each behind a LayerNorm and a skip."""

    fast = True

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, heads)
        self.attn2 = Attention(dim, heads, context_dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, N, dim), context (kB, L, context_dim) -> (kB, N, dim): all of x with each of k contexts."""
        x = repeated(x + self.attn1(self.norm1(x)), len(context))
        if self.fast or isinstance(context, FixedContext):
            x = x + cross_attention(self.attn2, self.norm2, x, context)
        else:
            x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map: where the context enters the UNet."""

    def __init__(self, dim: int, heads: int, context_dim: int, *, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, dim, eps=1e-6)  # 1e-6 here, 1e-5 in the UNet's resnets
        self.proj_in = Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(dim, heads, context_dim)])
        self.proj_out = Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (B, dim, H, W), context (kB, L, context_dim) -> (kB, dim, H, W)."""
        height, width = x.shape[2:]
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context)
        return repeated(x, len(h)) + self.proj_out(h.transpose(1, 2).unflatten(2, (height, width)))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, dim: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(dim, dim, 3, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):  # the VAE pads right and bottom only; the UNet pads all round
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
