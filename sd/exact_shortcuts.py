"""Exact shortcuts: what the layers of sd/layers.py compute, in less time and memory.

Each gives the numbers of the plain computation, up to the rounding of another kernel. Layers use shortcuts
while their attribute `fast` is true; set_fast(model, False) makes them compute as the papers are written.

With frozen convolutions, recomputed activations and redrawn dropout masks (lora.py) a LoRA step of SD 1.5 at
512 px in half precision keeps less than half of what autograd keeps (tests/training/test_memory.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from sd.layers import Attention

PACKED_FROM = 2**16  # weights of a convolution; smaller ones gain nothing


def set_fast(model: nn.Module, fast: bool) -> None:
    """Turn the shortcuts of all layers of `model` on or off. On: weights are stored channels last."""
    for module in model.modules():
        vars(module)["fast"] = fast
    for weight in model.parameters():
        if weight.ndim == 4:
            layout = torch.channels_last if fast else torch.contiguous_format
            weight.data = weight.data.contiguous(memory_format=layout)


def set_checkpointing(model: nn.Module, level: str) -> None:
    """What the backward pass recomputes: "none", "lean" (cheap activations) or "full" (whole blocks too)."""
    for module in model.modules():
        vars(module).update(lean=level != "none", checkpointing=level == "full")


# ---- sampling: several contexts for the same latents, and the same contexts in every step

class FixedContext:
    """A context that is the same in every sampling step: each layer projects it once."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self._projected: dict[nn.Module, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def projected(self, layer: nn.Module, project: Callable[[Tensor], tuple[Tensor, ...]]
                  ) -> tuple[Tensor, ...]:
        """project(tokens) of `layer`, computed at the first call."""
        if layer not in self._projected:
            self._projected[layer] = project(self.tokens)
        return self._projected[layer]


Context = Tensor | FixedContext  # (B, L, context_dim)


def repeated(x: Tensor, batch: int) -> Tensor:
    """Repeat x (B, ...) to `batch` rows: [a, b] -> [a, b, a, b]."""
    return x if len(x) == batch else torch.cat([x] * (batch // len(x)))


def cross_attention(attention: Attention, norm: nn.LayerNorm, x: Tensor, context: Context) -> Tensor:
    """attention(norm(x), context), where a context of one token needs neither queries nor keys.

    A softmax over one token is 1, so every pixel gets to_out(to_v(token)).
    """
    # In training each pixel goes through to_out by itself: its adapter drops inputs pixel by pixel.
    pixels = x.shape[1] if attention.training else 1

    def project(tokens: Tensor) -> tuple[Tensor, ...]:
        if tokens.shape[1] > 1:
            return attention.keys_values(tokens)
        return (attention.to_out[0](attention.to_v(tokens).expand(-1, pixels, -1)),)

    made = context.projected(attention, project) if isinstance(context, FixedContext) else project(context)
    return attention.attend(norm(x), *made) if len(made) > 1 else made[0]


# ---- activation recomputation: autograd keeps what any gradient could need; these keep less

class Recomputed(torch.autograd.Function):
    """f(*inputs), for f that is cheap, pure and uses no other weights.

    Only the inputs are kept; the backward pass computes f again, to the same bits.
    """

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


class Gated(torch.autograd.Function):
    """both (..., 2 C) -> first half * gelu(second half), (..., C). Keeps only `both`.

    As fast as autograd: gelu is computed twice, but both gradients are written in place.
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
        torch.ops.aten.gelu_backward(gradient * value, gate, grad_input=for_gate)
        return found


# ---- convolutions: frozen ones keep no input; on a CPU their weights are packed once

class _FrozenConv2d(torch.autograd.Function):
    """A convolution with frozen weights. Its gradient does not need x, since it is linear in x; autograd
    keeps x all the same, for the gradient of the weights (Bhatia and Dangel 2024, arXiv 2404.12406)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: Conv2d) -> Tensor:
        ctx.conv = conv
        # Pixels at the far edges that the stride does not reach: the transposed convolution restores them.
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
    """nn.Conv2d that keeps its input only if its weights are trained. These may be fp32 beside a half x."""

    fast = True
    padding: tuple[int, ...]
    packed: tuple[Tensor, Tensor | None] | None = None  # by `pack`: weights for y, and for x's gradient

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) -> (B, c_out, H', W')."""
        if self.packed or (self.fast and not self.pointwise and not self.weight.requires_grad):
            return _FrozenConv2d.apply(x, self)
        weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
        if self.fast and self.pointwise:  # a linear layer: with channels last the input needs no copy
            y = F.linear(x.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1), bias)
            return y.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, self.stride, self.padding)

    @property
    def pointwise(self) -> bool:
        return self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0)


def packed_bytes(model: nn.Module) -> int:
    """Bytes that pack(model, gradients=True) adds to the memory of `model`."""
    return sum(conv.weight.nbytes for conv in _packable(model))


def pack(model: nn.Module, *, gradients: bool) -> None:
    """Reorder the weights of large frozen convolutions for the CPU's kernels once, instead of at each call.

    gradients: pack a second copy for the gradient of the input; without it there is none. The plain weights
    are dropped, so they can no longer be read or moved. Does nothing on a GPU, or if the CPU has no kernels
    for this precision.
    """
    for conv in _packable(model):
        weight, how = conv.weight.detach(), (conv.stride, (1, 1), 1)
        backward = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight, conv.padding, (0, 0), *how) if gradients else None
        conv.packed = torch.ops.mkldnn._reorder_convolution_weight(weight, conv.padding, *how), backward
        conv.register_parameter("weight", None)


def _packable(model: nn.Module) -> Iterator[Conv2d]:
    """The large frozen convolutions of `model` for which the CPU has packed kernels."""
    for conv in model.modules():
        if not isinstance(conv, Conv2d) or conv.packed or conv.pointwise or conv.weight.requires_grad:
            continue
        weight = conv.weight
        if (weight.numel() >= PACKED_FROM and weight.device.type != "cuda"
                and torch.backends.mkldnn.is_available()
                and (weight.dtype == torch.float32 or weight.dtype == torch.bfloat16
                     and torch.ops.mkldnn._is_mkldnn_bf16_supported())):
            yield conv
