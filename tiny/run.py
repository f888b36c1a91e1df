"""The training loop of the embedded base's networks: schedule, fresh pictures, averaging, stop and resume."""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from machine import DTYPES
from tiny.common import TINY, draw_images, note
from tiny.muon import Muon


def training_flags(doc: str | None, steps: int, lr: float) -> argparse.ArgumentParser:
    """The flags of every training here, with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--fresh", type=int, default=8, help="new pictures a step")
    parser.add_argument("--held-out", type=int, default=256, help="pictures that the numbers are taken from")
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="bf16 is quicker on GPUs and on CPUs with bf16 matrix units")
    parser.add_argument("--out", type=Path, default=TINY / "work")
    return parser


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps and a cosine down to a hundredth of the peak: a function of the step."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def stream(first: int, per_step: int, start: int, stop: int,
           draw: Callable[[range], tuple] = draw_images) -> Iterator[tuple]:
    """What `draw` makes for step `start`, `start` + 1, ..: afresh, in a process that stays a few steps ahead.
    """
    # Spawned, not forked: torch's threads do not survive a fork.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        def ask(step: int):
            return pool.submit(draw, range(first + step * per_step, first + (step + 1) * per_step))
        ahead = [ask(step) for step in range(start, min(start + 8, stop))]
        for step in range(start, stop):
            if step + 8 < stop:
                ahead.append(ask(step + 8))
            yield ahead.pop(0).result()


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float = 0.999) -> None:
    """Exponential moving average of the weights; the decay ramps up so that the start is forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    for a, p in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(p, 1 - decay)


class Run:
    """One training under --out: the model, its average, its optimizer, and the step where it stands."""

    def __init__(self, args: argparse.Namespace, name: str, model: nn.Module, decay: float = 0.999,
                 begin: int = 0) -> None:
        """`decay`: the average's. `begin`: the step that `model` has come to where nothing was saved yet."""
        self.args, self.name, self.model, self.decay = args, name, model, decay
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = Muon(model, DTYPES[args.precision])
        self.state, self.began = args.out / f"{name}.state.safetensors", time.time()
        self.start = self._load() if self.state.exists() else begin

    def steps(self, first: int, draw: Callable[[range], tuple] = draw_images) -> Iterator[tuple[int, tuple]]:
        """Step after step to the last, each with args.fresh new pictures, of seeds from `first` on."""
        pictures = stream(first, self.args.fresh, self.start, self.args.steps, draw)
        for step, drawn in enumerate(tqdm(pictures, initial=self.start, total=self.args.steps, disable=None),
                                     self.start):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(step, self.args.steps, self.args.lr)
            yield step, drawn

    def update(self, step: int, loss: Tensor) -> None:
        """One step down the gradient of `loss`, and the average after it."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        update_average(self.average, self.model, step, self.decay)

    def due(self, step: int, every: int) -> bool:
        """Whether `step` ends a stretch of `every` steps, or all."""
        return (step + 1) % every == 0 or step + 1 == self.args.steps

    def save(self, step: int, numbers: dict[str, float]) -> None:
        """Note `numbers`, and write all that going on needs into one file that is whole or absent."""
        note(self.args.out, self.name, step + 1, numbers | {"seconds": time.time() - self.began})
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
        part = self.state.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, part, {"step": str(step + 1)})
        part.replace(self.state)

    def _load(self) -> int:
        """Undo `save`; returns the step to go on with."""
        with safe_open(self.state, "pt") as file:
            step = int(file.metadata()["step"])
        tensors = load_file(self.state)
        for name, module in (("model.", self.model), ("average.", self.average)):
            module.load_state_dict({k[len(name):]: v for k, v in tensors.items() if k.startswith(name)})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state,
                                        "param_groups": self.optimizer.state_dict()["param_groups"]})
        return step
