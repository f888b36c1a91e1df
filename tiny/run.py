"""The training loop of the embedded base's networks: schedule, fresh pictures, weight average, resume."""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from runtime.device import DTYPES
from tiny.common import TINY, Model, draw_images, note
from tiny.muon import Muon

T = TypeVar("T")
CRITIC_LR = 3e-4


def training_flags(doc: str | None, steps: int, lr: float) -> argparse.ArgumentParser:
    """The flags of every training script here, with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--save-every", type=int, default=500, help="steps between saves, which log numbers")
    parser.add_argument("--held-out", type=int, default=256, help="held-out pictures for the numbers")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="bf16 is quicker on GPUs and on CPUs with bf16 matrix units")
    parser.add_argument("--out", type=Path, default=TINY / "work")
    return parser


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps, then a cosine from the peak to a hundredth of it."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def stream(first: int, per_step: int, start: int, stop: int,
           draw: Callable[[range], tuple] = draw_images) -> Iterator[tuple]:
    """The pictures of steps `start` to `stop` - 1, drawn by `draw` in a process that is some steps ahead."""
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        def ask(step: int) -> Future[tuple]:
            return pool.submit(draw, range(first + step * per_step, first + (step + 1) * per_step))
        ahead = [ask(step) for step in range(start, min(start + 8, stop))]
        for step in range(start, stop):
            if step + 8 < stop:
                ahead.append(ask(step + 8))
            yield ahead.pop(0).result()


@torch.no_grad()
def update_average(average: Model, model: Model, step: int, decay: float) -> None:
    """Exponential moving average of the weights. The decay is lower in the first steps."""
    decay = min(decay, (step + 1) / (step + 10))
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


class Run(Generic[Model]):
    """One training run under --out: the model, the average of its weights, its optimizer, its first step.

    A critic, if there is one, has an optimizer of its own.
    """

    def __init__(self, args: argparse.Namespace, name: str, model: Model, decay: float = 0.999,
                 begin: int = 0, critic: torch.nn.Module | None = None) -> None:
        """decay: of the average. begin: the first step, unless the run is resumed."""
        self.args, self.name, self.model, self.decay = args, name, model, decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = Muon(model, DTYPES[args.precision])
        self.modules: dict[str, torch.nn.Module] = {"model": model, "average": self.average}
        self.optimizers: dict[str, torch.optim.Optimizer] = {"optimizer": self.optimizer}
        if critic is not None:
            self.modules["critic"] = critic
            self.optimizers["critic_optimizer"] = torch.optim.Adam(critic.parameters(), CRITIC_LR, (0.5, 0.9))
        self.state, self.began = args.out / f"{name}.state.safetensors", time.time()
        self.start = self._load() if self.state.exists() else begin

    def steps(self, pictures: Iterable[T]) -> Iterator[tuple[int, T]]:
        """(step, its pictures) for every step that is left."""
        for step, drawn in enumerate(tqdm(pictures, initial=self.start, total=self.args.steps, disable=None),
                                     self.start):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.args.steps, self.args.lr)
            yield step, drawn

    def update(self, step: int, loss: Tensor) -> None:
        """One optimizer step on `loss`, then an update of the average."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.model, step, self.decay)

    def update_critic(self, loss: Tensor) -> None:
        """One step of the critic's optimizer on `loss`."""
        optimizer = self.optimizers["critic_optimizer"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def due(self, step: int, every: int = 0) -> bool:
        """Whether `step` is the last one, or completes a multiple of `every` (--save-every) steps."""
        return (step + 1) % (every or self.args.save_every) == 0 or step + 1 == self.args.steps

    def save(self, step: int, numbers: dict[str, float]) -> None:
        """Log `numbers`, and write the whole training state to one file, atomically."""
        note(self.args.out, self.name, step + 1, numbers | {"seconds": time.time() - self.began})
        tensors = {f"{name}.{k}": v for name, module in self.modules.items()
                   for k, v in module.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"{name}.{i}.{k}": v for k, v in state.items()}
        part = self.state.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"step": str(step + 1)})
        part.replace(self.state)

    def _load(self) -> int:
        """Restore the state that `save` wrote; returns the step to resume at."""
        with safe_open(self.state, "pt") as file:
            step = int(file.metadata()["step"])
        tensors = load_file(self.state)
        for name, module in self.modules.items():
            module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items()
                                    if k.startswith(f"{name}.")})
        for name, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"{name}."):
                    _, index, entry = key.split(".")
                    state.setdefault(int(index), {})[entry] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
        return step
