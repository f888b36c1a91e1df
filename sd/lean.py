"""What a training step need not keep. Autograd keeps whatever any gradient could ask for; these keep less.

Both are exact: what is recomputed comes out the same bit for bit. With frozen convolutions (convolution.py)
and dropout's masks drawn again (lora.py) a LoRA step of SD 1.5 at 512 px in half precision then keeps less
than half (tests/test_memory.py counts it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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


class _Gated(torch.autograd.Function):
    """value * gelu(gate), of both halves of one tensor, which alone is kept.

    It takes no longer than autograd's own: gelu is computed once more, but both gradients are written to
    their places at once.
    """

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        value, gate = both.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        both, = ctx.saved_tensors
        found = torch.empty_like(both)
        (value, gate), (for_value, for_gate) = both.chunk(2, dim=-1), found.chunk(2, dim=-1)
        torch.mul(gradient, F.gelu(gate), out=for_value)
        for_gate.copy_(torch.ops.aten.gelu_backward(gradient * value, gate))
        return found


def recomputed(f: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """f(*inputs), keeping for the backward pass these inputs alone.

    f: cheap, and a function of its inputs alone, all of whose gradients go through them.
    """
    return _Recomputed.apply(f, *inputs)


def gated(both: Tensor) -> Tensor:
    """both (..., 2 C) -> its first half times gelu of the second (..., C), keeping `both` alone."""
    return _Gated.apply(both)
