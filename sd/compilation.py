"""--compile: torch.compile over the repeated blocks of a network, whose results it changes by rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from runtime.errors import UserError
from sd.exact_shortcuts import Context, FixedContext
from sd.layers import GEGLU, FeedForward, GroupNorm, ResnetBlock, SpatialTransformer

BACKEND = "inductor"


def check_compiler(device: torch.device, *, fast: bool) -> None:
    """Raises UserError where torch.compile does not work on `device`, or --no-fast is given too."""
    if not fast:
        raise UserError("--compile: --no-fast computes each layer as it is written; give one of the two")
    try:
        torch.compile(lambda x: x.sin().relu(), backend=BACKEND, fullgraph=True)(torch.ones(8, device=device))
    except Exception as error:  # of many classes: no compiler, no Triton, no headers of Python, an old GPU
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--compile: torch.compile does not work here on {device.type} ({said}); install a "
                        "C++ compiler, and for a GPU Triton, or omit the flag") from error


def compile_blocks(net: nn.Module, backend: str | None = None) -> None:
    """Compile the blocks of `net` that are frozen, in place, each as one graph for each shape of its inputs.

    Shapes are fixed, so that what a block computes does not depend on the calls before. A call raises where
    a graph would break.
    """
    torch._dynamo.config.recompile_limit = 10_000  # beyond it blocks would run as they are;
    torch._dynamo.config.accumulated_recompile_limit = 10_000  # those of a class share their code
    if hasattr(torch._inductor.config, "deterministic"):
        torch._inductor.config.deterministic = True  # kernels are not chosen by timing them
    for block in _frozen_blocks(net):
        for part in block.modules():  # the compiler chooses what to recompute; both would break the graph
            if isinstance(part, GroupNorm):
                vars(part)["lean"] = False
            elif isinstance(part, GEGLU):
                vars(part)["fast"] = False
        compiled = torch.compile(block.forward, backend=backend or BACKEND, fullgraph=True, dynamic=False)
        vars(block)["forward"] = (_on_tokens(compiled) if isinstance(block, SpatialTransformer) else compiled)


def _frozen_blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The outermost blocks without trained weights. The graph of a trained adapter would break: at the
    versions of its weights, and at the generators of its dropout."""
    for child in net.children():
        blocks = isinstance(child, (ResnetBlock, SpatialTransformer, FeedForward))
        if blocks and not any(weight.requires_grad for weight in child.parameters()):
            yield child
        else:
            yield from _frozen_blocks(child)


def _on_tokens(transformer: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Context], Tensor]:
    """The transformer, which projects a FixedContext too at each call: a graph would hold only for as many
    projections as there were at its first call."""
    return lambda x, context: transformer(x, context.tokens if isinstance(context, FixedContext) else context)
