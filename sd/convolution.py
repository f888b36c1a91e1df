"""Convolutions: frozen ones keep no input for the backward pass, and on a CPU their weights lie ready."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 2**16  # weights: fewer are laid out at every call in no time


class _FrozenConv2d(torch.autograd.Function):
    """A convolution whose weights do not learn. It is linear, so its input is not needed and not kept.

    Autograd's own keeps the input for the gradient of the weights, even where nobody will ask for that
    (Bhatia and Dangel 2024, arXiv 2404.12406).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: Conv2d) -> Tensor:
        ctx.conv = conv
        # What the stride leaves over at the far edges: the adjoint has to give these pixels back.
        ctx.rest = [(n + 2 * p - k) % s for n, p, k, s in
                    zip(x.shape[2:], conv.padding, conv.kernel_size, conv.stride, strict=True)]
        if conv.packed:
            return torch.ops.mkldnn._convolution_pointwise(
                x, conv.packed[0], conv.bias, conv.padding, conv.stride, (1, 1), 1, "none", [], "")
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        conv = ctx.conv
        if conv.packed:
            return torch.ops.mkldnn._convolution_transpose_pointwise(
                gradient, conv.packed[1], None, conv.padding, ctx.rest, conv.stride, (1, 1), 1, "none", [], ""
            ), None
        weight = conv.weight.to(gradient.dtype)
        return F.conv_transpose2d(gradient, weight, None, conv.stride, conv.padding, ctx.rest), None


class Conv2d(nn.Conv2d):
    """A convolution that keeps its input only where its weights learn. These may be fp32 beside a half x."""

    fast = True  # as in sd/layers.py
    packed: tuple[Tensor, Tensor | None] | None = None  # by `pack`: the weights for y, and for x's gradient

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        if self.packed or (self.fast and not self._pointwise and not self.weight.requires_grad):
            return _FrozenConv2d.apply(x, self)
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if self.fast and self._pointwise:  # a linear layer, and channels last its input lies as one's does
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    @property
    def _pointwise(self) -> bool:
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)


def packed_bytes(model: nn.Module) -> int:
    """What `pack` with gradients adds to the memory that `model` takes."""
    return sum(conv.weight.nbytes for conv in model.modules() if _packable(conv))


def pack(model: nn.Module, *, gradients: bool) -> None:
    """Lay out the large frozen convolutions of `model` as the CPU's kernels want them, once for all calls.

    gradients: a second time for the gradient of their inputs, which else is out of reach. The weights lie
    nowhere else afterwards, so they can be neither read nor moved. On a GPU, or where the CPU has no such
    kernels for their precision, nothing is done.
    """
    for conv in model.modules():
        if _packable(conv):
            weight, how = conv.weight.detach(), (conv.stride, (1, 1), 1)
            backward = torch.ops.mkldnn._reorder_convolution_transpose_weight(
                weight, conv.padding, (0, 0), *how) if gradients else None
            conv.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, conv.padding, *how), backward
            conv.weight = None


def _packable(conv: nn.Module) -> bool:
    if not isinstance(conv, Conv2d) or conv.packed or conv._pointwise or conv.weight.requires_grad:
        return False
    weight = conv.weight
    if weight.numel() < LARGE or weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
