"""Several processes for one command, started by torchrun: ranks, sums over ranks, and a common end.

Without torchrun there is one process of rank 0, and each function does what that needs.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from runtime import errors
from runtime.errors import UserError

T = TypeVar("T")
# No timeout: rank 0 may draw previews for hours. That a process has ended gloo notices at once, by its closed
# connection. nccl does not, nor gloo that a machine has gone: for that there is the heartbeat.
TIMEOUT = datetime.timedelta(days=30)
BEAT, PATIENCE = 5.0, 45.0  # seconds between signs of life, and without one until a process counts as dead
BUCKET = 50 * 2**20  # bytes of gradients that are exchanged at once


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is rank 0, which prints, and writes all files but the images that others drew."""
    return rank() == 0


def local_rank() -> int:
    """This process's rank on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def together(main: Callable[[], None]) -> Callable[[], None]:
    """`main` for all ranks: a process group is made around it, and an error in one rank ends all."""
    @functools.wraps(main)
    def joined() -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return main()
        store, number, size = next(dist.rendezvous("env://"))
        dist.init_process_group(store=store, rank=number, world_size=size, timeout=TIMEOUT)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, _errors_shared(store), \
                _heartbeat(store, number, size), \
                contextlib.nullcontext() if number == 0 else contextlib.redirect_stdout(nowhere):
            main()
            wait()
        dist.destroy_process_group()
        return None
    return joined


@contextlib.contextmanager
def _heartbeat(store: dist.Store, own: int, size: int) -> Iterator[None]:
    """While the block runs, threads tell the others that this process lives, and end it where one of them, or
    the store, gives no sign: the main thread may wait for that one for ever, in a call of nccl or gloo.
    """
    done = threading.Event()
    heard = dict.fromkeys(range(size), time.monotonic())  # at own: that the store answered

    def beat() -> None:
        """Every BEAT seconds: a new count in the store, and a look at the others' counts."""
        counts: dict[int, bytes] = {}
        for count in itertools.count():
            with contextlib.suppress(RuntimeError):
                store.set(f"alive {own}", str(count))
                for other in [other for other in range(size) if other != own]:
                    now = store.get(f"alive {other}") if store.check([f"alive {other}"]) else b""
                    if now != counts.get(other, b""):
                        counts[other], heard[other] = now, time.monotonic()
                heard[own] = time.monotonic()
            if done.wait(BEAT):
                return

    def watch() -> None:
        """Not in `beat`: a store whose machine has gone does not even fail."""
        while not done.wait(BEAT):
            if time.monotonic() - min(heard.values()) > PATIENCE and not done.is_set():
                os.write(2, (f"error: another process has given no sign of life for {PATIENCE:.0f} s. What "
                             "was saved is kept; run the same command to resume\n").encode())
                os._exit(2)

    store = store.clone()  # a connection of its own: the other may be waiting
    threads = [threading.Thread(target=work, daemon=True) for work in (beat, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(2 * BEAT)


class _RankEnded(Exception):
    """Another rank has ended."""


@contextlib.contextmanager
def _errors_shared(store: dist.Store) -> Iterator[None]:
    """Publish this rank's error for the others; report another rank's error as this rank's."""
    try:
        yield
    except _RankEnded as error:
        said = " without an error message"
        with contextlib.suppress(RuntimeError):  # without torchrun, the store ends with rank 0
            said = f": {store.get('error').decode()}" if store.check(["error"]) else said
        raise UserError(f"another process has ended{said}. What was saved is kept; run the same command "
                        "to resume") from error
    except Exception as error:
        with contextlib.suppress(RuntimeError):
            store.set("error", f"process {rank()}: {errors.message(error) or repr(error)}")
        raise


def _exchange(operation: Callable[..., T], *arguments: Any) -> T:
    """Run a collective operation. Raises _RankEnded where another rank has ended."""
    try:
        return operation(*arguments)
    except RuntimeError as error:
        raise _RankEnded(str(error)) from error


def add_up(*numbers: float) -> list[float]:
    """Each number summed over all ranks."""
    total = torch.tensor(numbers, dtype=torch.float64)
    if count() > 1:
        _exchange(dist.all_reduce, total)
    return total.tolist()


def wait() -> None:
    """A barrier."""
    add_up(0)


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on rank 0; an empty list on the others."""
    if count() == 1:
        return [value]
    values: list[Any] | None = [None] * count() if first() else None
    _exchange(dist.gather_object, value, values)
    return values or []


@torch.no_grad()
def sum_gradients(weights: list[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all ranks; None where no rank has one."""
    if count() == 1:
        return
    owners = add_up(*(float(weight.grad is not None) for weight in weights))
    bucket, size = [], 0
    for weight in [weight for weight, owned in zip(weights, owners, strict=True) if owned]:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        bucket.append(weight.grad)
        size += weight.grad.nbytes
        if size >= BUCKET:
            _sum_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(gradients: list[torch.Tensor]) -> None:
    """One exchange for all, in place: each keeps its memory format; in another AdamW rounds differently."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _exchange(dist.all_reduce, flat)
    for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
