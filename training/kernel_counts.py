"""What a computation asks of a GPU, counted from shapes: launches, FLOPs, bytes moved, live tensors.

The computation runs on fake tensors, as torch.compile's tracing does, so nothing is loaded or computed and no
GPU is needed. An operation that computes counts as one launch, however many kernels a library makes of it;
views and allocations count as none. It moves each operand and each result once, as a kernel that caches
perfectly would. So time from these counts (Roofline model, Williams et al. 2009) is a lower bound.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from sd import unet

aten = torch.ops.aten
# No kernels, though the schema does not say that their results are views.
FREE = {"_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh", "_local_scalar_dense", "empty",
        "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_has_compatible_shallow_copy_type",
        "is_same_size", "resize_", "set_"}
# These overwrite their first operand without reading it.
OVERWRITE = {"copy_", "fill_", "zero_", "random_", "normal_", "uniform_", "bernoulli_"}
# Convolutions run channels last where an operand is; group normalisation only in the other layout (as of
# PyTorch 2.14).
LAYOUTS = {"convolution", "convolution_backward", "native_group_norm", "native_group_norm_backward"}


class Operation(NamedTuple):
    """One launch: its name, FLOPs (two a multiplication with addition), and bytes read and written."""

    name: str
    flops: float
    moved: int


def flops(operations: Iterable[Operation]) -> float:
    """FLOPs of all; of matrix products, convolutions and attention, as the others' do not count."""
    return sum(operation.flops for operation in operations)


def moved(operations: Iterable[Operation]) -> int:
    """Bytes that all read and write."""
    return sum(operation.moved for operation in operations)


HALF = ("linear", "conv2d", "scaled_dot_product_attention")  # autocast's lists, as far as they are used here
FULL = ("group_norm", "layer_norm", "mse_loss")


@contextlib.contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast's rules for CUDA, which meta tensors have not; None: no autocast.

    Matrix products and convolutions in `dtype`, normalisation in fp32; a trained weight is cast once. What
    the backward pass recomputes, maybe after the block, is computed as it was in it.
    """
    cast: dict[int, Tensor] = {}
    within = True

    def converted(x: Tensor, wanted: torch.dtype) -> Tensor:
        if x.dtype == wanted or not x.is_floating_point():
            return x
        if not (x.is_leaf and x.requires_grad):
            return x.to(wanted)
        if id(x) not in cast:
            cast[id(x)] = x.to(wanted)
        return cast[id(x)]

    def wrapped(function: Callable[..., Tensor], wanted: torch.dtype) -> Callable[..., Tensor]:
        def called(*args: Any, **kwargs: Any) -> Tensor:
            args, kwargs = tree_map_only(Tensor, lambda x: converted(x, wanted), (args, kwargs))
            return function(*args, **kwargs)
        return called

    def checkpointed(module: Callable[..., Tensor], *inputs: Any, **how: Any) -> Any:
        def compute(*inputs: Any) -> Tensor:
            with autocast(None if within else dtype):
                return module(*inputs)
        return checkpoint(compute, *inputs, **how)

    with contextlib.ExitStack() as stack:
        for name in (*HALF, *FULL) if dtype else ():
            replaced = wrapped(getattr(F, name), dtype if dtype and name in HALF else torch.float32)
            stack.enter_context(mock.patch.object(F, name, replaced))
        if dtype:
            stack.enter_context(mock.patch.object(unet, "checkpoint", checkpointed))
        yield
    within = False


def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As on a GPU: one kernel, which keeps one number a row."""
    train = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return aten._scaled_dot_product_efficient_attention(q, k, v, None, train)[0]


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As on a GPU: one kernel."""
    return aten.native_dropout(x, p, True)[0] if training else x


class _Generator(torch.Generator):
    """A CPU generator for the meta device too, where nothing is drawn."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")  # type: ignore[call-arg]


@contextlib.contextmanager
def counted() -> Iterator[KernelCounts]:
    """While the block runs, new tensors are on the meta device, and all operations on such are counted."""
    with contextlib.ExitStack() as stack:
        for module in (optimizer, _foreach_utils):
            for kind in ("foreach", "fused"):
                stack.enter_context(mock.patch.object(
                    module, f"_get_{kind}_kernels_supported_devices", lambda: ["meta"]))
        for place, name, instead in ((torch, "Generator", _Generator), (F, "dropout", _dropout),
                                     (F, "scaled_dot_product_attention", _attention)):
            stack.enter_context(mock.patch.object(place, name, instead))
        stack.enter_context(torch.device("meta"))
        yield stack.enter_context(KernelCounts())


class KernelCounts(TorchDispatchMode):
    """While active, lists the operations on meta tensors, and counts the bytes of those made and alive."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: weakref.WeakSet = weakref.WeakSet()
        self.operations: list[Operation] = []

    def take(self) -> tuple[Operation, ...]:
        """The operations since the last call."""
        taken, self.operations = tuple(self.operations), []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # a value that is read: whether Adam's step is finite
        made = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) and x.is_meta for x in (*tree_leaves(args), *tree_leaves(made))):
            return made
        name = func.overloadpacket.__name__
        if name in LAYOUTS:
            made = self._in_layout(name, args, made)
        if name not in FREE and not func.is_view:
            known = flop_registry.get(func.overloadpacket)
            self.operations.append(Operation(name, known(*args, **kwargs, out_val=made) if known else 0,
                                             _moved(func, name, args, kwargs, made)))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return made

    def _in_layout(self, name: str, args: Any, made: Any) -> Any:
        """The results in the memory format that the CUDA kernel gives them; operands in another are copied.
        """
        images = [x for x in args if isinstance(x, Tensor) and x.ndim == 4]
        layout = torch.contiguous_format
        if "convolution" in name and not all(x.is_contiguous() for x in images):
            layout = torch.channels_last
        self.operations += [Operation("copy to another layout", 0, 2 * _size(x)) for x in images
                            if not x.is_contiguous(memory_format=layout)]

        def formatted(x: Tensor) -> Tensor:
            return torch.empty_like(x, memory_format=layout) if x.ndim == 4 else x

        return tree_map_only(Tensor, formatted, made)

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._gone, storage.nbytes())
            self.alive += storage.nbytes()
            self.most = max(self.most, self.alive)

    def _gone(self, size: int) -> None:
        self.alive -= size


def _moved(func: Any, name: str, args: Any, kwargs: Any, made: Any) -> int:
    """Bytes that an operation reads and writes."""
    schema = func._schema.arguments
    given = [(schema[i], value) for i, value in enumerate(args)]
    given += [(argument, kwargs[argument.name]) for argument in schema if argument.name in kwargs]
    read = written = 0
    for argument, value in given:
        size = sum(map(_size, tree_leaves(value)))
        changed = argument.alias_info is not None and argument.alias_info.is_write
        written += size if changed else 0
        read += 0 if changed and (name in OVERWRITE or argument.kwarg_only) else size
    return read + (written or sum(map(_size, tree_leaves(made))))


def _size(x: Any) -> int:
    """Bytes of a tensor's elements, those that are repeated by expand once."""
    if not isinstance(x, Tensor):
        return 0
    return math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.element_size()
