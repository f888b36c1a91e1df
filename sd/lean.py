"""What a training step need not keep. Autograd keeps whatever any gradient could ask for; these keep less.

Both are exact: the frozen convolution computes the very gradient that autograd would, and what is recomputed
comes out the same bit for bit. Of SD 1.5 at 512 px in half precision a LoRA step then keeps less than half
(tests/test_memory.py counts it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class _FrozenConv2d(torch.autograd.Function):
    """A convolution whose weights do not learn. It is linear, so its input is not needed and not kept.

    Autograd's own keeps the input for the gradient of the weights, even where nobody will ask for that
    (Bhatia and Dangel 2024, arXiv 2404.12406).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int],
                padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.stride, ctx.padding = stride, padding
        # What the stride leaves over at the far edges: the adjoint has to give these pixels back.
        ctx.rest = [(n + 2 * p - k) % s for n, p, k, s in
                    zip(x.shape[2:], padding, weight.shape[2:], stride, strict=True)]
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, = ctx.saved_tensors
        x = F.conv_transpose2d(gradient, weight.to(gradient.dtype), None, ctx.stride, ctx.padding, ctx.rest)
        return x, None, None, None, None


class _Recomputed(torch.autograd.Function):
    """f(*inputs), of which only the inputs are kept; the backward pass computes f once more."""

    @staticmethod
    def forward(ctx: Any, f: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.f, device = f, inputs[0].device.type
        ctx.save_for_backward(*inputs)
        mixed = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        ctx.precision = (torch.autocast(device, torch.get_autocast_dtype(device)) if mixed else
                         contextlib.nullcontext())
        return f(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad(), ctx.precision:
            y = ctx.f(*inputs)
        found = iter(torch.autograd.grad(y, [x for x in inputs if x.requires_grad], gradient))
        return None, *(next(found) if need else None for need in needed)


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int],
                  padding: tuple[int, int]) -> Tensor:
    """F.conv2d with weights that get no gradient, keeping nothing of x (B, C, H, W)."""
    return _FrozenConv2d.apply(x, weight, bias, stride, padding)


def recomputed(f: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """f(*inputs), keeping for the backward pass these inputs alone.

    f: cheap, and a function of its inputs alone, all of whose gradients go through them.
    """
    return _Recomputed.apply(f, *inputs)
