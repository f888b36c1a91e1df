"""Several processes for one command, as torchrun starts them: who is who, sums over all, and a common end.

Without torchrun there is one process, and each function is what it is for one.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

import errors
from errors import UserError

T = TypeVar("T")
# Waiting is never a fault, for the first process may draw previews for hours. That one has ended is seen at
# once: gloo notices the closed connection, and torchrun, which ends the others, everything else.
PATIENCE = datetime.timedelta(days=30)


def count() -> int:
    """How many processes work on this command."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the process that writes files and says what is done."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine: its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def together(main: Callable[[], None]) -> Callable[[], None]:
    """`main`, run by all processes: they meet at its start and at its end, and one's error ends them all."""
    @functools.wraps(main)
    def joined() -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return main()
        store, number, size = next(dist.rendezvous("env://"))
        dist.init_process_group(store=store, rank=number, world_size=size, timeout=PATIENCE)
        with open(os.devnull, "w") as nowhere, _errors_shared(store), \
                contextlib.nullcontext() if number == 0 else contextlib.redirect_stdout(nowhere):
            main()
            wait()
        dist.destroy_process_group()
        return None
    return joined


class _Gone(Exception):
    """Another process has ended."""


@contextlib.contextmanager
def _errors_shared(store: dist.Store) -> Iterator[None]:
    """What ends this process is told to those that wait for it; what ended another ends this one."""
    try:
        yield
    except _Gone as error:
        said = " without a word"
        with contextlib.suppress(RuntimeError):  # torchrun keeps the store; others let it go with the first
            said = f": {store.get('error').decode()}" if store.check(["error"]) else said
        raise UserError(f"another process has ended{said}. What was saved before is kept; the same command "
                        "goes on") from error
    except Exception as error:
        with contextlib.suppress(RuntimeError):
            store.set("error", f"process {rank()}: {errors.message(error) or repr(error)}")
        raise


def _exchange(operation: Callable[..., T], *arguments: Any) -> T:
    """A collective operation. Raises _Gone where another process has ended."""
    try:
        return operation(*arguments)
    except RuntimeError as error:
        raise _Gone(str(error)) from error


def add_up(*numbers: float) -> list[float]:
    """Each number summed over all processes."""
    total = torch.tensor(numbers, dtype=torch.float64)
    if count() > 1:
        _exchange(dist.all_reduce, total)
    return total.tolist()


def wait() -> None:
    """Return when all processes have come here."""
    add_up(0)


def gather(value: T) -> list[T]:
    """The values of all processes, by rank, for the first; an empty list for the others."""
    if count() == 1:
        return [value]
    values: list[Any] | None = [None] * count() if first() else None
    _exchange(dist.gather_object, value, values)
    return values or []


@torch.no_grad()
def sum_gradients(weights: list[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes; None where no process has one."""
    if count() == 1:
        return
    there = torch.tensor([float(w.grad is not None) for w in weights], device=weights[0].device)
    flat = torch.cat([there, *(torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten()
                               for w in weights)])
    _exchange(dist.all_reduce, flat)
    for owners, weight, total in zip(flat[:len(weights)].tolist(), weights,
                                     flat[len(weights):].split([w.numel() for w in weights]), strict=True):
        # Lying as its weight does, as in a single process: fused AdamW rounds otherwise where it does not.
        weight.grad = torch.empty_like(weight).copy_(total.view_as(weight)) if owners else None
