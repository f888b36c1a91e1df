"""The training loop: optimizer, stepped learning rate, mixed precision, resume, previews.

Everything random in a step is a function of (seed, epoch, item), the learning rate one of the epoch. So a run
that was stopped at any step resumes bit for bit by the same command, and several processes (torchrun), which
share the images of each step, take the same steps as one but for rounding.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from runtime import distributed
from runtime.device import peak_memory
from runtime.errors import Signals, out_of_memory
from training.batches import Batch, EpochOrder
from training.config import RunConfig, rate_factor
from training.diffusion import mixed_precision
from training.latents import Latents
from training.previews import PreviewRow, draw_preview
from training.resume_state import Trainable
from training.run_folder import RunFolder
from training.schedules import PreviewSchedule, SaveSchedule
from training.step_noise import StepNoise
from training.validation import Validator

Loss = Callable[[Batch, StepNoise], Tensor]  # the diffusion step of a strategy: the loss of each image (B,)


def train(config: RunConfig, trainable: Trainable, latents: Latents, loss: Loss,
          preview_row: PreviewRow) -> None:
    """Minimise the mean of `loss` over the data, and leave everything in the run folder config.out.

    Raises UserError where the loss stays not finite, KeyboardInterrupt after a signal.
    """
    order = EpochOrder(len(latents), config.batch_size, config.accumulate, config.seed)
    last = min(config.epochs * order.steps_per_epoch, config.max_steps or sys.maxsize)
    run = RunFolder(config, trainable, latents)
    with run.opened(config.restart) as start:
        scored = config.validate and config.preview_every and distributed.first()
        previews = PreviewSchedule(
            config, order, last, run, lambda: draw_preview(config, trainable.net, latents, preview_row),
            Validator(config, run.folder, latents) if scored else None)
        with Signals(announce_stop) as signals:
            if start:  # the preview that was due when the run stopped
                previews.catch_up(start - 1)
            _loop(config, order, range(start, last), latents, loss, run, previews, signals)


def _loop(config: RunConfig, order: EpochOrder, steps: range, latents: Latents, loss: Loss, run: RunFolder,
          previews: PreviewSchedule, signals: Signals) -> None:
    """Each step: set the learning rate, update the weights, log, and save and preview what is due."""
    optimizer, micro_batch, seconds = run.trainable.optimizer, MicroBatch(config.batch_size), []
    saves = SaveSchedule(config, order, steps, run)
    with tqdm(initial=steps.start, total=steps.stop, unit="step",
              disable=None if distributed.first() else True) as bar:
        for step, batches in zip(steps, latents.steps(order, steps), strict=True):
            began, epoch = time.perf_counter(), step // order.steps_per_epoch
            factor = rate_factor(config, epoch)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            mean_loss, norm = optimizer_step(lambda batch: step_losses(config, loss, latents, batch), batches,
                                             len(order.keys(step)), optimizer, run.scaler, config.clip,
                                             micro_batch)
            seconds.append(time.perf_counter() - began)
            if config.ema:  # the decay rises from 0.1, which forgets the start soon
                update_average(run.average, run.trainable.tensors, min(config.ema, (step + 1) / (step + 10)))
            saves.count(mean_loss, norm)
            run.log({"step": step + 1, "epoch": epoch, "loss": finite(mean_loss), "lr": config.lr * factor,
                     "grad_norm": finite(norm), "skipped": run.skipped, "seconds": round(seconds[-1], 4)})
            bar.set_postfix(epoch=epoch + 1, loss=f"{mean_loss:.4f}", skipped=run.skipped, refresh=False)
            bar.update()

            stopping = distributed.add_up(signals.seen) != [0]
            saves.after(step, mean_loss, norm, stopping)
            if math.isfinite(mean_loss):
                previews.after(step, stopping)
            if stopping and step + 1 < steps.stop:
                raise KeyboardInterrupt(f"saved after step {saves.saved}; the same command"
                                        f"{' without --restart' * config.restart} goes on")
    if seconds and distributed.first():
        print(f"{len(seconds)} steps of {config.batch_size * config.accumulate} images, "
              f"{statistics.median(seconds):.3g} s each (median); peak memory "
              f"{peak_memory(latents.device) / 2**30:.2f} GiB", file=sys.stderr)


def step_losses(config: RunConfig, loss: Loss, latents: Latents, batch: Batch) -> Tensor:
    """The losses (B,) of a batch, encoded if it is not yet, with the random numbers of its images."""
    noise = StepNoise(config, batch, latents.device)
    batch = latents.encoded(batch)
    with mixed_precision(config, latents.device):
        return loss(batch, noise)


def optimizer_step(losses: Callable[[Batch], Tensor], batches: list[Batch], images: int,
                   optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, clip: float,
                   micro_batch: MicroBatch) -> tuple[float, float]:
    """One optimizer step on the mean loss over `images` images; `batches` are this process's share.

    Returns that loss and the gradient norm before clipping, over all processes. Where they are not finite the
    weights stay unchanged; in fp16, whose gradients overflow now and then, the scale is halved.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    zero = torch.zeros((), device=weights[0].device)
    scaler.scale(zero)  # initialises the scale: this process's share may be empty
    share = micro_batch.run(lambda size: zero + backward(losses, batches, images, scaler, size),
                            optimizer.zero_grad)
    distributed.sum_gradients(weights)
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(weights, clip or math.inf)
    loss, norm = torch.stack([share, norm]).tolist()  # the only wait for the GPU in a step
    mean_loss, = distributed.add_up(loss)
    if math.isfinite(mean_loss) and math.isfinite(norm):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss, norm


def backward(losses: Callable[[Batch], Tensor], batches: list[Batch], images: int,
             scaler: torch.amp.GradScaler, size: int) -> Tensor | float:
    """Add the gradient of the sum of all losses over `images`, `size` images at once. Returns that sum."""
    share: Tensor | float = 0.0
    for batch in batches:
        for start in range(0, len(batch["item"]), size):
            part = {name: values[start:start + size] for name, values in batch.items()}
            loss = losses(part).sum() / images
            scaler.scale(loss).backward()
            share = share + loss.detach()
    return share


class MicroBatch:
    """How many images go through the model at once: halved each time that the memory does not suffice."""

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, work: Callable[[int], Tensor], undo: Callable[[], None]) -> Tensor:
        """work(size); where memory runs out, `undo` and work again with half the size."""
        while True:
            try:
                return work(self.size)
            except RuntimeError as error:
                if self.size == 1 or not out_of_memory(error):
                    raise
            undo()  # outside the except block, where the error no longer keeps the activations alive
            torch.cuda.empty_cache()
            self.size = -(-self.size // 2)
            print(f"out of memory: from here on {self.size} at once, still as many images a step "
                  "(--checkpointing full would keep more together)", file=sys.stderr)


def announce_stop() -> None:
    """Called by the first signal; the loop then saves after the step."""
    # Not print, which fails where the signal came during another print.
    os.write(2, b"\nstopping after this step; once more to leave at once\n")


def finite(value: float) -> float | None:
    """Rounded for metrics.jsonl; None where it is not finite, which JSON cannot express."""
    return round(value, 6) if math.isfinite(value) else None


def update_average(average: dict[str, Tensor], tensors: dict[str, Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * tensors."""
    torch._foreach_lerp_([average[name] for name in tensors], list(tensors.values()), 1 - decay)
