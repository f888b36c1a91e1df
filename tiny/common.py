"""What the trainings of the embedded base share: pictures, layout, weight files, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sd.layers import Attention, GroupNorm, set_fast
from tiny.procedural import draw

TINY = Path(__file__).parent
HELD_OUT = 10_000_000_000  # seeds from here on are never trained on


class PlanarGroupNorm(GroupNorm):
    """GroupNorm computed planar inside a channels-last network: on CPUs its bf16 backward pass is three times
    faster so, while the convolutions around it want channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)

    def _silu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super()._silu(x.contiguous(), weight, bias).contiguous(memory_format=torch.channels_last)


class PlainAttention(Attention):
    """The same sums written out: on CPUs the fused kernel's bf16 backward pass is 2 to 10 times slower than
    this for so few tokens."""

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self._split(self.to_q(x))
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.to_out[0]((weight @ v.to(weight.dtype)).transpose(1, 2).flatten(2))


QUICK_IN_BF16 = {GroupNorm: PlanarGroupNorm, Attention: PlainAttention}


def prepare(model: nn.Module, device: str, precision: str) -> nn.Module:
    """Move `model` to the device in its quickest layout; the weights and what they compute stay the same."""
    set_fast(model, False)  # memory is plenty here: nothing is computed twice to save some
    model = model.to(device, memory_format=torch.channels_last)
    if (device, precision) == ("cpu", "bf16"):
        for module in model.modules():
            module.__class__ = QUICK_IN_BF16.get(type(module), type(module))
    return model


def draw_images(seeds: range, size: int = 128) -> tuple[Tensor, list[tuple[str, ...]], Tensor]:
    """The procedural images of `seeds`: (B, 3, size, size) in [-1, 1], their words, and where their damages
    are, (B, 1, size, size) in {0, 1}."""
    samples = [draw(seed, size) for seed in seeds]
    image = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
    mask = torch.from_numpy(np.stack([s.mask for s in samples])).float()[:, None]
    return image, [s.words for s in samples], mask


def note(folder: Path, part: str, step: int, numbers: dict[str, float]) -> None:
    """Add a row to <part>.jsonl and make it the part's entry in numbers.json, which goes with the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"step": step, **{name: round(value, 5) for name, value in numbers.items()}}
    with open(folder / f"{part}.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")
    path = folder / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: row}, indent=2) + "\n")


def save_component(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """One component in diffusers' layout: config.json and an fp16 safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.float16).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
