"""The one training loop: optimizer, stepped learning rate, mixed precision, resume, previews.

Everything random in a step is a function of (seed, epoch, item), and the learning rate is one of the epoch.
So a run stopped at any step goes on bit for bit as if it had not been, by the same command, and several
processes (torchrun) that share out the images of each step take the same steps as one, but for rounding.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

import processes
from adapter import Header
from batches import Batch, Plan, load_steps
from data import DefectDataset
from errors import UserError
from machine import peak_memory
from recipe import RunConfig, rate_factor
from run_folder import RunFolder

SKIPS = 20  # in a row: fp16's scaler needs 16 of them to bring its scale from 65536 down to 1
DIVERGED = ("step {step}: the loss is {loss:g}, its gradient's norm {norm:g}; {skipped} steps in a row were "
            "skipped for that. Lower --lr, use --clip 1 or --precision fp32; what step {saved} left is kept")


class Preview(NamedTuple):
    """What the weights draw from fixed seeds: a picture to look at, images (N,3,R,R) in [-1,1], classes."""

    picture: Image.Image
    image: Tensor
    class_id: list[int]


Validate = Callable[[Preview], dict[str, float | None]]  # scores of a preview, null where not measured


class Interrupts:
    """While the block runs, the first Ctrl-C or SIGTERM is only noted; the next ends the process at once."""

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
        for number in self._usual:  # by the system: Python would first finish what it is computing
            signal.signal(number, signal.SIG_DFL)
        # Not print: it fails where the signal came amidst another print.
        os.write(2, b"\nstopping after this step; once more to leave at once\n")


def make_optimizer(config: RunConfig, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over groups of parameters, each with its learning rate before any decay."""
    named = [{"params": parameters, "initial_lr": rate} for parameters, rate in groups]
    return torch.optim.AdamW(named, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay,
                             fused=True)


class Shows:
    """What the first process shows of a run beside its state: previews, what they are worth, curves."""

    def __init__(self, config: RunConfig, plan: Plan, last: int, run: RunFolder,
                 preview: Callable[[], Preview], validate: Validate | None) -> None:
        self.config, self.plan, self.last, self.run = config, plan, last, run
        self.preview, self.validate = preview, validate

    def after(self, step: int, stopping: bool) -> None:
        """Draw what is due after a step, once its state is saved."""
        if self._due(step):
            self._draw(step)
        if processes.first() and (stopping or step + 1 == self.last or self._due(step)):
            self.run.draw_curves()

    def catch_up(self, step: int) -> None:
        """The same for the last step before a stop, as far as the stop came before it was done."""
        if self._due(step) and self.run.lacks_preview(step // self.plan.steps_per_epoch + 1):
            self._draw(step)
        if processes.first() and (step + 1 == self.last or self._due(step)):
            self.run.draw_curves()

    def _due(self, step: int) -> bool:
        every = self.config.preview_every
        return processes.first() and every > 0 and (step + 1 == self.last or self.plan.due(step, every))

    def _draw(self, step: int) -> None:
        epoch, run = step // self.plan.steps_per_epoch, self.run
        with swapped(run.tensors, run.average):
            shown = self.preview()
        if self.validate:
            run.save_validated(step + 1, epoch, self.validate(shown), self.config.best)
        run.save_preview(epoch + 1, shown.picture)  # last: where it is, the rest was done


class MicroBatch:
    """How many images go through the model at once: half as many each time that they do not fit."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], float], undo: Callable[[], None]) -> float:
        """work(size), after `undo` again with half of it where memory runs out."""
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            undo()  # out here, where the error no longer holds on to what was computed
            torch.cuda.empty_cache()
            self.size = -(-self.size // 2)
            print(f"out of memory: from here on {self.size} at once, still as many images a step "
                  "(--checkpointing full would keep more together)", file=sys.stderr)


def backward(loss_fn: Callable[[Batch], Tensor], batches: list[Batch], images: int,
             scaler: torch.amp.GradScaler, size: int) -> float:
    """Add the gradient of the sum of all losses over `images`, `size` at once. Returns that sum."""
    share = 0.0
    for batch in batches:
        for start in range(0, len(batch["item"]), size):
            part = {name: values[start:start + size] for name, values in batch.items()}
            loss = loss_fn(part).sum() / images
            scaler.scale(loss).backward()
            share += loss.item()
    return share


def optimizer_step(loss_fn: Callable[[Batch], Tensor], batches: list[Batch], images: int,
                   optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float,
                   micro_batch: MicroBatch) -> tuple[float, float]:
    """One step down the mean loss over `images` images, of which `batches` are this process's share.

    Returns that loss and its gradient's norm before clipping, over all processes. Where they are not finite
    the weights stay as they are; in fp16, whose gradients overflow now and then, the scale is halved.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    scaler.scale(torch.zeros((), device=weights[0].device))  # makes the scale, for a share may be empty
    share = micro_batch.run(lambda size: backward(loss_fn, batches, images, scaler, size),
                            optimizer.zero_grad)
    processes.sum_gradients(weights)
    mean_loss, = processes.add_up(share)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(weights, clip or math.inf).item()
    if math.isfinite(mean_loss) and math.isfinite(norm):
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
    UserError where the loss stays not finite, KeyboardInterrupt after a signal.
    """
    plan = Plan(len(dataset), config.batch_size, config.accumulate, config.seed)
    last = min(config.epochs * plan.steps_per_epoch, config.max_steps or sys.maxsize)
    scaler = torch.amp.GradScaler(enabled=config.precision == "fp16")
    average = {name: tensor.clone() for name, tensor in tensors.items()} if config.ema else tensors
    run = RunFolder(folder, header, dataset, tensors, average, optimizer, scaler)
    with run.opened(config.restart) as start:
        judged = validation and config.preview_every and processes.first()
        shows = Shows(config, plan, last, run, preview, validation() if judged else None)
        with Interrupts() as interrupts:
            if start:
                shows.catch_up(start - 1)
            _loop(config, plan, range(start, last), dataset, loss_fn, run, shows, interrupts)


def _loop(config: RunConfig, plan: Plan, steps: range, dataset: DefectDataset,
          loss_fn: Callable[[Batch], Tensor], run: RunFolder, shows: Shows, interrupts: Interrupts) -> None:
    """Each step: its learning rate, its update, what the first process leaves of it."""
    in_a_row, saved, due = 0, steps.start, False
    micro_batch, seconds = MicroBatch(config.batch_size), []
    with tqdm(initial=steps.start, total=steps.stop, unit="step",
              disable=None if processes.first() else True) as bar:
        for step, batches in zip(steps, load_steps(dataset, plan, steps, config.workers), strict=True):
            began, epoch = time.perf_counter(), step // plan.steps_per_epoch
            factor = rate_factor(config, epoch)
            for group in run.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            loss, norm = optimizer_step(loss_fn, batches, len(plan.keys(step)), run.optimizer, run.scaler,
                                        config.clip, micro_batch)
            seconds.append(time.perf_counter() - began)
            if config.ema:  # the decay rises from 0.1, so that the start is soon forgotten
                update_average(run.average, run.tensors, min(config.ema, (step + 1) / (step + 10)))
            skipped = not (math.isfinite(loss) and math.isfinite(norm))
            in_a_row, run.skipped = (in_a_row + 1) * skipped, run.skipped + skipped
            run.log({"step": step + 1, "epoch": epoch, "loss": finite(loss), "lr": config.lr * factor,
                     "grad_norm": finite(norm), "skipped": run.skipped,
                     "seconds": round(seconds[-1], 4)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.4f}", skipped=run.skipped, refresh=False)
            bar.update()

            finished, interrupted = step + 1 == steps.stop, processes.add_up(interrupts.seen) != [0]
            due = due or finished or interrupted or plan.due(step, config.save_every)
            if in_a_row == SKIPS or (finished and not math.isfinite(loss)):
                raise UserError(DIVERGED.format(step=step + 1, loss=loss, norm=norm, skipped=in_a_row,
                                                saved=saved))
            if math.isfinite(loss):  # else the weights may be ruined: what was saved before is better
                if due:
                    run.save(step + 1)
                    saved, due = step + 1, False
                    if bar.disable and processes.first():  # no terminal: a log file still shows that it lives
                        skips = f", {run.skipped} steps skipped" if run.skipped else ""
                        print(f"step {saved} of {steps.stop}: loss {loss:.4f}{skips}", file=sys.stderr,
                              flush=True)
                shows.after(step, interrupted)
            if interrupted and not finished:
                raise KeyboardInterrupt(f"saved after step {saved}; the same command"
                                        f"{' without --restart' * config.restart} goes on")
    if seconds and processes.first():
        peak = peak_memory(run.optimizer.param_groups[0]["params"][0].device)
        print(f"{len(seconds)} steps of {config.batch_size * config.accumulate} images, "
              f"{statistics.median(seconds):.3g} s each (median); peak memory {peak / 2**30:.2f} GiB",
              file=sys.stderr)


def finite(value: float) -> float | None:
    """Rounded for the record; None, for JSON has no other word, where it is not finite."""
    return round(value, 6) if math.isfinite(value) else None


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
