"""What both stages of the embedded base's training share: schedules, averaging, checkpoints, data."""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd.layers import Attention
from tiny.procedural import draw

TINY = Path(__file__).parent
HELD_OUT = 10_000_000_000  # seeds from here on are never trained on


class PlanarGroupNorm(nn.GroupNorm):
    """GroupNorm computed planar inside a channels-last network: on CPUs its bf16 backward pass is three times
    faster so, while the convolutions around it want channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


class PlainAttention(Attention):
    """The same sums written out: on CPUs the fused kernel's bf16 backward pass is 2 to 10 times slower than
    this for so few tokens."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.to_out[0]((weight @ v.to(weight.dtype)).transpose(1, 2).flatten(2))


QUICK_IN_BF16 = {nn.GroupNorm: PlanarGroupNorm, Attention: PlainAttention}


def prepare(model: nn.Module, device: str, precision: str) -> nn.Module:
    """Move `model` to the device in its quickest layout; the weights and what they compute stay the same."""
    model = model.to(device, memory_format=torch.channels_last)
    if (device, precision) == ("cpu", "bf16"):
        for module in model.modules():
            module.__class__ = QUICK_IN_BF16.get(type(module), type(module))
    return model


def add_machine_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both trainings that say where and how they run."""
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32",
                        help="bf16 is quicker on GPUs and on CPUs with bf16 matrix units")
    parser.add_argument("--out", type=Path, default=TINY / "work")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 200 steps and a cosine down to a hundredth of the peak: a function of the step."""
    warm = min(1.0, (step + 1) / 200)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def draw_images(seeds: range, size: int = 128) -> tuple[Tensor, list[tuple[str, ...]]]:
    """The procedural images of `seeds`: (B, 3, size, size) in [-1, 1], and their words."""
    samples = [draw(seed, size) for seed in seeds]
    image = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image, [s.words for s in samples]


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


def save_state(path: Path, step: int, model: nn.Module, average: nn.Module,
               optimizer: torch.optim.Optimizer) -> None:
    """Everything that resuming needs, in one file that is whole or absent."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path.with_suffix(".tmp"), {"step": str(step)})
    path.with_suffix(".tmp").replace(path)


def load_state(path: Path, model: nn.Module, average: nn.Module,
               optimizer: torch.optim.Optimizer) -> int:
    """Undo `save_state`; returns the step to go on with, 0 where there is no file."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    for name, module in (("model.", model), ("average.", average)):
        module.load_state_dict({k[len(name):]: v for k, v in tensors.items() if k.startswith(name)})
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


def save_component(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """One component in diffusers' layout: config.json and an fp16 safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.float16).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def note(folder: Path, part: str, step: int, numbers: dict[str, float]) -> None:
    """Add a row to <part>.jsonl and make it the part's entry in numbers.json, which goes with the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"step": step, **{name: round(value, 5) for name, value in numbers.items()}}
    with open(folder / f"{part}.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")
    path = folder / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: row}, indent=2) + "\n")
