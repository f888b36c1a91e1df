"""The one training loop: data order, optimizer, stepped learning rate, mixed precision, resume, previews.

Everything random in a step is a function of (seed, epoch, item) or (seed, step), and the learning rate is one
of the epoch. So a run stopped at any step goes on bit for bit as if it had not been, by the same command.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from adapter import Header
from data import DefectDataset
from errors import UserError
from recipe import RunConfig, rate_factor
from run_folder import RunFolder
from seeds import numpy_rng, seed_of

# image (B,3,R,R) or what the VAE made of it (latents.py), class_id (B,), epoch (B,), item (B,), and mask
# (B,1,R,R) if loaded.
Batch = dict[str, Any]


class Preview(NamedTuple):
    """What the weights draw from fixed seeds: a picture to look at, images (N,3,R,R) in [-1,1], classes."""

    picture: Image.Image
    image: Tensor
    class_id: list[int]


Validate = Callable[[Preview], dict[str, float | None]]  # scores of a preview, null where not measured


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

    def batches(self, step: int) -> list[list[tuple[int, int]]]:
        """The (epoch, item) pairs of one step, in its batches. The last step of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = numpy_rng(self.seed, "order", epoch).permutation(self.items)
        size = self.batch_size * self.accumulate
        chosen = [(epoch, int(i)) for i in order[place * size:(place + 1) * size]]
        return [chosen[i:i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]


class _Keyed(torch.utils.data.Dataset):
    """The dataset, each example with the (epoch, item) that its noise is drawn from."""

    def __init__(self, dataset: DefectDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        return {**self.dataset[key], "epoch": key[0], "item": key[1]}


def _leave_signals_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def load_batches(dataset: DefectDataset, keys: Iterable[list[tuple[int, int]]],
                 workers: int) -> Iterator[Batch]:
    """One batch for each list of (epoch, item) pairs."""
    return iter(torch.utils.data.DataLoader(_Keyed(dataset), batch_sampler=keys, num_workers=workers,
                                            worker_init_fn=_leave_signals_to_the_trainer))


def load_steps(dataset: DefectDataset, plan: Plan, start: int, stop: int,
               workers: int) -> Iterator[list[Batch]]:
    """The batches of each step from `start` up to `stop`."""
    batches = load_batches(dataset, (b for step in range(start, stop) for b in plan.batches(step)), workers)
    for step in range(start, stop):
        yield [next(batches) for _ in plan.batches(step)]


class Interrupts:
    """While the block runs, the first Ctrl-C or SIGTERM is only noted; the next has its usual effect."""

    def __enter__(self) -> Interrupts:
        self.seen = False
        self._usual = {number: signal.signal(number, self._note)
                       for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.seen = True
        self.__exit__()
        # Not print: it fails where the signal came amidst another print.
        os.write(2, b"\nstopping after this step; once more to leave at once\n")


def make_optimizer(config: RunConfig, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over groups of parameters, each with its learning rate before any decay."""
    named = [{"params": parameters, "initial_lr": rate} for parameters, rate in groups]
    return torch.optim.AdamW(named, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay)


def optimizer_step(step: int, loss_fn: Callable[[Batch], Tensor], batches: list[Batch],
                   optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                   clip: float) -> tuple[float, float]:
    """One step down the mean loss over all images. Returns that loss and its gradient's norm before clipping.

    Raises UserError where they are not finite, before anything reaches the weights.
    """
    images, mean_loss = sum(len(batch["item"]) for batch in batches), 0.0
    for batch in batches:
        loss = loss_fn(batch).sum() / images
        scaler.scale(loss).backward()
        mean_loss += loss.item()
    scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = nn.utils.clip_grad_norm_(weights, clip or math.inf).item()
    # In fp16 a gradient overflows now and then: the scaler skips that step and halves its scale. Only where
    # there is nothing left to halve (or no scaler, whose scale reads 1) is it the training that fails.
    if not math.isfinite(mean_loss) or (not math.isfinite(norm) and scaler.get_scale() <= 1):
        raise UserError(f"step {step + 1}: the loss is {mean_loss:g}, its gradient's norm {norm:g}; lower "
                        "--lr or use --clip 1. What was saved before is kept")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss, norm


def train(config: RunConfig, folder: Path, dataset: DefectDataset, loss_fn: Callable[[Batch], Tensor],
          optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], header: Header,
          preview: Callable[[], Preview], validation: Callable[[], Validate] | None) -> None:
    """Minimise the mean of loss_fn over the data, leaving everything in `folder`.

    loss_fn: a batch -> losses (B,). tensors: what is trained, by its name in the checkpoint, sharing memory
    with the optimizer's parameters. header: what the checkpoint says of itself. preview: what the weights
    draw now. validation: makes what scores a preview, which may take minutes; None: no scores. Raises
    UserError where the loss is not finite, KeyboardInterrupt after a signal.
    """
    plan = Plan(len(dataset), config.batch_size, config.accumulate, config.seed)
    last = min(config.epochs * plan.steps_per_epoch, config.max_steps or sys.maxsize)
    scaler = torch.amp.GradScaler(enabled=config.precision == "fp16")
    average = {name: tensor.clone() for name, tensor in tensors.items()} if config.ema else tensors
    run = RunFolder(folder, header, dataset, tensors, average, optimizer, scaler)
    start = run.begin(config.restart)
    validate = validation() if validation and config.preview_every else None
    dataset.prepare(range(start // plan.steps_per_epoch, -(-last // plan.steps_per_epoch)), config.workers)
    with Interrupts() as interrupts, tqdm(initial=start, total=last, unit="step", disable=None) as bar:
        for step, batches in enumerate(load_steps(dataset, plan, start, last, config.workers), start):
            began, epoch = time.perf_counter(), step // plan.steps_per_epoch
            factor = rate_factor(config, epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            torch.manual_seed(seed_of(config.seed, "dropout", step))
            loss, norm = optimizer_step(step, loss_fn, batches, optimizer, scaler, config.clip)
            if config.ema:  # the decay rises from 0.1, so that the start is soon forgotten
                update_average(average, tensors, min(config.ema, (step + 1) / (step + 10)))
            run.log({"step": step + 1, "epoch": epoch, "loss": round(loss, 6), "lr": config.lr * factor,
                     "grad_norm": round(norm, 6) if math.isfinite(norm) else None,
                     "seconds": round(time.perf_counter() - began, 4)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.4f}", refresh=False)
            bar.update()

            finished, interrupted = step + 1 == last, interrupts.seen
            if finished or interrupted or plan.due(step, config.save_every):
                run.save(step + 1)
                if bar.disable:  # no terminal: a log file still shows that it lives
                    print(f"step {step + 1} of {last}: loss {loss:.4f}", file=sys.stderr, flush=True)
            if config.preview_every and (finished or plan.due(step, config.preview_every)):
                with swapped(tensors, average):
                    shown = preview()
                run.save_preview(epoch + 1, shown.picture)
                if validate:
                    run.save_validated(step + 1, epoch, validate(shown), config.best)
            if finished or interrupted or plan.due(step, config.preview_every):
                run.draw_curves()
            if interrupted and not finished:
                raise KeyboardInterrupt(f"saved after step {step + 1}; the same command"
                                        f"{' without --restart' * config.restart} goes on")


def update_average(average: dict[str, Tensor], tensors: dict[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * tensors."""
    for name, tensor in tensors.items():
        average[name].lerp_(tensor, 1 - decay)


@contextlib.contextmanager
def swapped(tensors: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with the averaged weights in the model's place, and put the trained ones back."""
    trained = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(average[name])
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(trained[name])
