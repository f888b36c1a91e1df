"""Which images each training step sees, and in what batches: functions of (seed, epoch, step)."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import processes
from data import DefectDataset
from seeds import numpy_rng

# image (B,3,R,R) or what the VAE made of it (latents.py), class_id (B,), epoch (B,), item (B,), and mask
# (B,1,R,R) if loaded.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which items each step sees: a permutation of the data an epoch, cut into batches."""

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
        """This process's share of them, every count-th one, in batches. It may be empty."""
        own = self.keys(step)[processes.rank()::processes.count()]
        return [own[i:i + self.batch_size] for i in range(0, len(own), self.batch_size)]


class _Keyed(torch.utils.data.Dataset):
    """The dataset, each example with the (epoch, item) that its noise is drawn from."""

    def __init__(self, dataset: DefectDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return {**self.dataset[key], "epoch": key[0], "item": key[1]}


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A signal to all processes at once must not take the data away from a step that is to be finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def load_batches(dataset: DefectDataset, keys: Iterable[list[tuple[int, int]]],
                 workers: int) -> Iterator[Batch]:
    """One batch for each list of (epoch, item) pairs."""
    return iter(torch.utils.data.DataLoader(_Keyed(dataset), batch_sampler=keys, num_workers=workers,
                                            worker_init_fn=_leave_signals_to_the_trainer))


def load_steps(dataset: DefectDataset, plan: Plan, steps: range, workers: int) -> Iterator[list[Batch]]:
    """The batches of each step."""
    workers = dataset.prepare(workers)
    batches = load_batches(dataset, (batch for step in steps for batch in plan.batches(step)), workers)
    for step in steps:
        if step == steps.start or step % plan.steps_per_epoch == 0:
            dataset.begin(step // plan.steps_per_epoch)
        yield [next(batches) for _ in plan.batches(step)]
