"""Which images each training step sees, and in what batches: functions of (seed, epoch, step)."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from runtime import distributed
from runtime.seeds import numpy_rng

# image (B,3,R,R) or the tensors that the VAE encoded it to (latents.py), class_id, epoch and item (B,), and
# mask (B,1,R,R) if loaded.
Batch = dict[str, Any]


class Examples(Protocol):
    """What batches are made of: a DefectDataset, or one that is encoded (latents.py)."""

    def __getitem__(self, key: tuple[int, int]) -> Batch: ...


@dataclass(frozen=True)
class EpochOrder:
    """Which items each step sees: in each epoch a permutation of the data, cut into batches."""

    items: int
    batch_size: int
    accumulate: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.items // (self.batch_size * self.accumulate))

    def due(self, step: int, every: int) -> bool:
        """Whether `step` ends an epoch whose number divides by `every` (0: never)."""
        return every > 0 and (step + 1) % (every * self.steps_per_epoch) == 0

    def keys(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, item) pairs of one step. The last step of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = numpy_rng(self.seed, "order", epoch).permutation(self.items)
        size = self.batch_size * self.accumulate
        return [(epoch, int(i)) for i in order[place * size:(place + 1) * size]]

    def batches(self, step: int) -> list[list[tuple[int, int]]]:
        """This process's share of a step, every count-th pair, in batches. It may be empty."""
        own = self.keys(step)[distributed.rank()::distributed.count()]
        return [own[i:i + self.batch_size] for i in range(0, len(own), self.batch_size)]


class _Keyed(torch.utils.data.Dataset):
    """The examples, each with the (epoch, item) that its noise is drawn from."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return {**self.examples[key], "epoch": key[0], "item": key[1]}


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Let a worker outlive a signal to the whole process group: the trainer still finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def load_batches(examples: Examples, keys: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[Batch]:
    """One batch for each list of (epoch, item) pairs."""
    return iter(torch.utils.data.DataLoader(_Keyed(examples), batch_sampler=keys, num_workers=workers,
                                            worker_init_fn=_leave_signals_to_the_trainer))


def ahead(batches: Iterator[Batch], count: int = 2) -> Iterator[Batch]:
    """The same batches, of which a thread prepares the next `count` while one is used.

    A GPU then waits for the augmentation only where that is slower. A thread, because a process hands its
    images over in /dev/shm, of which a Docker container has 64 MB.
    """
    with ThreadPoolExecutor(1) as thread:
        asked = deque(thread.submit(next, batches, None) for _ in range(count))
        while (batch := asked.popleft().result()) is not None:
            asked.append(thread.submit(next, batches, None))
            yield batch
