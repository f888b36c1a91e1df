"""The one training loop: optimizer, stepped learning rate, mixed precision, resume, previews.

Everything random in a step is a function of (seed, epoch, item), and the learning rate is one of the epoch.
So a run stopped at any step goes on bit for bit as if it had not been, by the same command, and several
processes (torchrun) that share out the images of each step take the same steps as one, but for rounding.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import processes
from batches import Batch, Plan, load_steps
from data import DefectDataset
from errors import Signals, UserError
from header import Header
from machine import peak_memory
from previews import Preview, Shows, Validate
from recipe import RunConfig, rate_factor
from run_folder import RunFolder

SKIPS = 20  # in a row: fp16's scaler needs 16 of them to bring its scale from 65536 down to 1
DIVERGED = ("step {step}: the loss is {loss:g}, its gradient's norm {norm:g}; {skipped} steps in a row were "
            "skipped for that. Lower --lr, use --clip 1 or --precision fp32; what step {saved} left is kept")


def announce_stop() -> None:
    """What a first signal does: the loop, which looks out for it, saves after the step."""
    # Not print: it fails where the signal came amidst another print.
    os.write(2, b"\nstopping after this step; once more to leave at once\n")


def make_optimizer(config: RunConfig, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over groups of parameters, each with its learning rate before any decay."""
    named = [{"params": parameters, "initial_lr": rate} for parameters, rate in groups]
    return torch.optim.AdamW(named, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay,
                             fused=True)


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
        with Signals(announce_stop) as signals:
            if start:
                shows.catch_up(start - 1)
            _loop(config, plan, range(start, last), dataset, loss_fn, run, shows, signals)


class Saves:
    """When a run is saved: as it is due, or, where a loss is not finite, after the next good step."""

    def __init__(self, config: RunConfig, plan: Plan, steps: range, run: RunFolder) -> None:
        self.config, self.plan, self.steps, self.run = config, plan, steps, run
        self.saved, self.due, self.skipped = steps.start, False, 0  # skipped: in a row

    def count(self, loss: float, norm: float) -> None:
        """Take note of a step, which was skipped where its loss or gradient is not finite."""
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        self.skipped, self.run.skipped = (self.skipped + 1) * skipped, self.run.skipped + skipped

    def after(self, step: int, loss: float, norm: float, stopping: bool) -> None:
        """Save the state if that is due. Raises UserError where the losses are hopeless."""
        finished = step + 1 == self.steps.stop
        self.due = self.due or finished or stopping or self.plan.due(step, self.config.save_every)
        if self.skipped == SKIPS or (finished and not math.isfinite(loss)):
            raise UserError(DIVERGED.format(step=step + 1, loss=loss, norm=norm, skipped=self.skipped,
                                            saved=self.saved))
        # Else the weights may be ruined: what was saved before is better.
        if self.due and math.isfinite(loss):
            self.run.save(step + 1)
            self.saved, self.due = step + 1, False
            if processes.first() and not sys.stderr.isatty():  # a log file too shows that it lives
                skips = f", {self.run.skipped} steps skipped" if self.run.skipped else ""
                print(f"step {self.saved} of {self.steps.stop}: loss {loss:.4f}{skips}", file=sys.stderr,
                      flush=True)


def _loop(config: RunConfig, plan: Plan, steps: range, dataset: DefectDataset,
          loss_fn: Callable[[Batch], Tensor], run: RunFolder, shows: Shows, signals: Signals) -> None:
    """Each step: its learning rate, its update, what is left of it."""
    micro_batch, saves, seconds = MicroBatch(config.batch_size), Saves(config, plan, steps, run), []
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
            saves.count(loss, norm)
            run.log({"step": step + 1, "epoch": epoch, "loss": finite(loss), "lr": config.lr * factor,
                     "grad_norm": finite(norm), "skipped": run.skipped, "seconds": round(seconds[-1], 4)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{loss:.4f}", skipped=run.skipped, refresh=False)
            bar.update()

            stopping = processes.add_up(signals.seen) != [0]
            saves.after(step, loss, norm, stopping)
            if math.isfinite(loss):
                shows.after(step, stopping)
            if stopping and step + 1 < steps.stop:
                raise KeyboardInterrupt(f"saved after step {saves.saved}; the same command"
                                        f"{' without --restart' * config.restart} goes on")
    if seconds and processes.first():
        say_what_it_took(run.optimizer, config.batch_size * config.accumulate, seconds)


def say_what_it_took(optimizer: torch.optim.Optimizer, images: int, seconds: list[float]) -> None:
    """One line on stderr: steps of so many images, time, memory."""
    peak = peak_memory(optimizer.param_groups[0]["params"][0].device)
    print(f"{len(seconds)} steps of {images} images, {statistics.median(seconds):.3g} s each (median); peak "
          f"memory {peak / 2**30:.2f} GiB", file=sys.stderr)


def finite(value: float) -> float | None:
    """Rounded for the record; None, for JSON has no other word, where it is not finite."""
    return round(value, 6) if math.isfinite(value) else None


def update_average(average: dict[str, Tensor], tensors: dict[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * tensors."""
    for name, tensor in tensors.items():
        average[name].lerp_(tensor, 1 - decay)
