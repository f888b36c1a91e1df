"""The one training loop: data order, optimizer, stepped learning rate, mixed precision, resume, previews.

Everything random in a step is a function of (seed, epoch, item) or (seed, step), and the learning rate of
the step. So a run stopped at any step goes on bit for bit as if it had not been, by running the same command again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from config import flag
from data import DataConfig, DefectDataset
from errors import UserError
from files import save_image
from run_folder import RunFolder
from seeds import numpy_rng, seed_of


@dataclass
class TrainConfig(DataConfig):
    """The recipe: every default is the seed's own training_config unless its help says otherwise."""

    out: str = flag("", "run folder (default: runs/<name of the data>-<strategy>)", group="run")
    base: str = flag("stable-diffusion-v1-5/stable-diffusion-v1-5",
                     "hub id, diffusers folder, single .safetensors file, or tiny", group="run")
    restart: bool = flag(False, "start anew in a run folder that holds another run", group="run")
    preview_every: int = flag(25, "epochs between preview pictures, 0 for none", group="run", minimum=0)
    save_every: int = flag(5, "epochs between saves of the checkpoint and the resume state", group="run",
                           minimum=1)
    preview_steps: int = flag(50, "DDIM steps of a preview", group="run", minimum=1, maximum=1000)
    preview_guidance: float = flag(1.0, "guidance scale of previews; above 1 needs --class-dropout",
                                   group="run", minimum=1)
    epochs: int = flag(250, "passes over the data", group="training", minimum=1)
    max_steps: int | None = flag(None, "stop after so many optimizer steps", group="training", minimum=1)
    batch_size: int = flag(4, "images in memory at once", group="training", minimum=1)
    accumulate: int = flag(1, "batches an optimizer step", group="training", minimum=1)
    lr: float = flag(1e-4, "learning rate of AdamW", group="training", above=0)
    lr_decay: list[str] = flag(["100=0.5", "175=0.2"], "EPOCH=FACTOR of --lr from that epoch on",
                               group="training")
    embedding_lr: float | None = flag(None, "learning rate of the class embedding (default: --lr)",
                                      group="training", above=0)
    weight_decay: float = flag(0.01, "weight decay of AdamW", group="training", minimum=0)
    clip: float = flag(0.0, "clip the gradient's norm to this; 0: not at all (the recipe)", group="training",
                       minimum=0)
    ema: float = flag(0.0, "decay of an average of the weights, saved in their place; 0: none (the recipe)",
                      group="training", minimum=0, maximum=0.99999)
    rank: int = flag(16, "LoRA rank", group="adapter", minimum=1)
    alpha: float = flag(32.0, "LoRA alpha; the update is scaled by alpha / rank", group="adapter", above=0)
    dropout: float = flag(0.1, "dropout on the LoRA's input", group="adapter", minimum=0, maximum=0.99)
    tokens_per_class: int = flag(1, "context tokens a class; 1 is the recipe, several work better (README)",
                                 group="adapter", minimum=1, maximum=77)
    init_std: float = flag(0.02, "standard deviation of the class embedding's start", group="adapter",
                           above=0)
    class_dropout: float = flag(0.0, "share of images trained without class, for guidance; 0 is the recipe",
                                group="adapter", minimum=0, maximum=0.9)
    precision: str = flag("auto", "auto: bf16 on GPUs that have it, fp16 on older ones, fp32 on a CPU",
                          group="machine", choices=("auto", "fp32", "bf16", "fp16"))
    checkpointing: str = flag("auto", "recompute activations: less memory, a third more work; auto decides by "
                              "the free memory", group="machine", choices=("auto", "none", "full"))
    device: str = flag("auto", "auto, cpu, cuda, cuda:1, ..", group="machine")
    workers: int = flag(0, "processes that load data beside the training", group="machine", minimum=0)


def run_folder(config: TrainConfig, strategy: str) -> Path:
    """--out, or runs/<last part of --data>-<strategy>."""
    return Path(config.out or f"runs/{Path(config.data[0]).name}-{strategy}")


def learning_rate_factor(lr_decay: list[str], epoch: int) -> float:
    """The factor of the last decay whose epoch has come. Raises UserError where text is not EPOCH=FACTOR."""
    factor, latest = 1.0, -1
    for text in lr_decay:
        try:
            start, value = int(text.split("=")[0]), float(text.split("=")[1])
            if start < 0 or not 0 <= value < float("inf"):
                raise ValueError
        except (ValueError, IndexError):
            raise UserError(f"--lr-decay {text}: expected EPOCH=FACTOR, such as 100=0.5") from None
        if latest < start <= epoch:
            factor, latest = value, start
    return factor


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

    def micro_batches(self, step: int) -> list[list[tuple[int, int]]]:
        """The (epoch, item) pairs of one step, in micro-batches. The last step of an epoch may be short."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = numpy_rng(self.seed, "order", epoch).permutation(self.items)
        size = self.batch_size * self.accumulate
        chosen = [(epoch, int(i)) for i in order[place * size:(place + 1) * size]]
        return [chosen[i:i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]


class _Keys(torch.utils.data.Sampler):
    """Feeds a DataLoader the micro-batches of steps start .. stop."""

    def __init__(self, plan: Plan, start: int, stop: int) -> None:
        self.plan, self.start, self.stop = plan, start, stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.start, self.stop):
            yield from self.plan.micro_batches(step)


class _Keyed(torch.utils.data.Dataset):
    """The dataset, each example with the (epoch, item) that its noise is drawn from."""

    def __init__(self, dataset: DefectDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {**self.dataset[key], "epoch": key[0], "item": key[1]}


class Stop:
    """Ctrl-C or SIGTERM: finish the step, save, leave. A second one leaves at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)
        print("stopping after this step; once more to leave at once", file=sys.stderr)


def learning_rates(config: TrainConfig, epoch: int) -> tuple[float, float]:
    """The learning rates of the LoRA and of the class embedding in this epoch."""
    factor = learning_rate_factor(config.lr_decay, epoch)
    return config.lr * factor, (config.embedding_lr or config.lr) * factor


def make_optimizer(config: TrainConfig, lora: list[nn.Parameter],
                   embedding: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW over the two groups whose learning rates `learning_rates` gives (AdamW: arXiv 1711.05101)."""
    return torch.optim.AdamW([{"params": lora}, {"params": embedding}], lr=config.lr, betas=(0.9, 0.999),
                             weight_decay=config.weight_decay)


def loader(config: TrainConfig, dataset: DefectDataset, plan: Plan, start: int,
           stop: int) -> Iterator[dict[str, Any]]:
    """The micro-batches of steps start .. stop, in order."""
    if config.workers:
        dataset.preload()  # before the workers fork, so that they share the decoded images
    return iter(torch.utils.data.DataLoader(
        _Keyed(dataset), batch_sampler=_Keys(plan, start, stop), num_workers=config.workers,
        pin_memory=torch.cuda.is_available(), persistent_workers=False))


def train(config: TrainConfig, folder: Path, dataset: DefectDataset,
          loss_fn: Callable[[dict[str, Any]], Tensor], optimizer: torch.optim.Optimizer,
          tensors: dict[str, Tensor], dtype: torch.dtype,
          save_adapter: Callable[[Path, dict[str, Tensor], int], None],
          preview: Callable[[], Image.Image]) -> None:
    """Minimise the mean of loss_fn over the data, leaving everything in `folder`.

    loss_fn: a batch (image (B,3,R,R), class_id (B,), epoch, item) -> losses (B,). tensors: what is trained, by
    its name in the checkpoint, sharing memory with the optimizer's parameters. preview: a picture of what the
    averaged weights draw now. Raises UserError where the loss is no longer finite.
    """
    plan = Plan(len(dataset), config.batch_size, config.accumulate, config.seed)
    last = min(config.epochs * plan.steps_per_epoch, config.max_steps or sys.maxsize)
    scaler = torch.amp.GradScaler(enabled=dtype == torch.float16)
    average = {k: v.clone() for k, v in tensors.items()} if config.ema else tensors
    run = RunFolder(folder, dataclasses.asdict(config), tensors, average, optimizer, scaler, save_adapter)
    start, stop = run.begin(), Stop()
    batches = loader(config, dataset, plan, start, last)
    bar = tqdm(range(start, last), initial=start, total=last, unit="step", disable=None)
    for step in bar:
        epoch, began = step // plan.steps_per_epoch, time.perf_counter()
        rates = learning_rates(config, epoch)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        micro = plan.micro_batches(step)
        items, loss = sum(map(len, micro)), 0.0
        torch.manual_seed(seed_of(config.seed, "dropout", step))
        for _ in micro:
            part = loss_fn(next(batches)).sum() / items
            scaler.scale(part).backward()
            loss += part.item()
        if not math.isfinite(loss):
            raise UserError(f"step {step + 1}: the loss is {loss}; lower --lr or use --clip 1. "
                            f"{folder} keeps the last good checkpoint")
        if config.clip:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], config.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        for name, weight in tensors.items() if config.ema else ():
            average[name].lerp_(weight, 1 - min(config.ema, (step + 1) / (step + 10)))
        run.log({"step": step + 1, "epoch": epoch, "loss": round(loss, 6), "lr": rates[0],
                 "seconds": round(time.perf_counter() - began, 4)})
        bar.set_postfix(epoch=epoch, loss=f"{loss:.4f}", refresh=False)
        done, at_epoch_end = epoch + 1, (step + 1) % plan.steps_per_epoch == 0
        finished = step + 1 == last or stop.signal is not None
        if finished or (at_epoch_end and done % config.save_every == 0):
            run.save(step + 1)
        if config.preview_every and (step + 1 == last or (at_epoch_end and done % config.preview_every == 0)):
            with swapped(tensors, average):
                save_image(folder / "previews" / f"epoch_{done:04d}.png", preview())
        if stop.signal is not None:
            raise KeyboardInterrupt(f"saved after step {step + 1}; the same command goes on")


def choose_checkpointing(config: TrainConfig, unet: nn.Module, device: torch.device) -> bool:
    """--checkpointing: auto recomputes activations where they would take more than half of the free memory.

    The estimate scales 1.34 GiB, what autocast training keeps of one 512 px image at SD 1.5's width in half
    precision (counted from saved tensors, not measured on a card), by pixels and width; twice that in fp32.
    """
    if config.checkpointing != "auto":
        return config.checkpointing == "full"
    if device.type == "cuda":
        free, size = torch.cuda.mem_get_info(device)[0], 1
    else:
        free, size = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 2
    needed = 1.34 * 2**30 * size * config.batch_size
    needed *= (config.resolution / 512) ** 2 * unet.config.block_out_channels[0] / 320
    return needed > free / 2


@contextlib.contextmanager
def swapped(tensors: dict[str, Tensor], average: dict[str, Tensor]) -> Iterator[None]:
    """Run a block with the averaged weights in the model's place, and put the trained ones back."""
    kept = {k: v.clone() for k, v in tensors.items()}
    for name, tensor in tensors.items():
        tensor.copy_(average[name])
    try:
        yield
    finally:
        for name, tensor in tensors.items():
            tensor.copy_(kept[name])
