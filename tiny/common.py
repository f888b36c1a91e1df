"""Shared by the training scripts of the embedded base: pictures, memory layout, weight files, numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from runtime.pictures import tensor_to_image
from sd.exact_shortcuts import set_fast
from sd.layers import Attention, GroupNorm, Upsample
from tiny.procedural import draw

TINY = Path(__file__).parent
HELD_OUT = 10_000_000_000  # pictures of this seed and higher ones are never trained on
Model = TypeVar("Model", bound=nn.Module)


class PlanarGroupNorm(GroupNorm):
    """GroupNorm that computes in planar layout inside a channels-last network.

    On CPUs this makes its bf16 backward pass three times faster. The convolutions around it are faster in
    channels-last layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)

    def _silu(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super()._silu(x.contiguous(), weight, bias).contiguous(memory_format=torch.channels_last)


class PlainAttention(Attention):
    """Attention without the fused kernel, whose bf16 backward pass on CPUs is 2 to 10 times slower for so few
    tokens."""

    def attend(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self._split(self.to_q(x))
        weight = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
        return self.to_out[0]((weight @ v.to(weight.dtype)).transpose(1, 2).flatten(2))


class SubpixelUpsample(Upsample):
    """Upsample without the larger input: each of the four pixels that one becomes has its own 2 x 2 kernel.

    These are 4/9 of the products. On CPUs the forward and backward pass take about half the time.
    """

    # (phase, tap, row of the 3 x 3 kernel): both copies of a pixel count for the tap that it becomes.
    TAPS = torch.tensor([[[1.0, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])

    def forward(self, x: Tensor) -> Tensor:
        height, width, taps = *x.shape[2:], self.TAPS.to(x)
        kernel = torch.einsum("oiyx,apy,bqx->aboipq", self.conv.weight.to(x.dtype), taps, taps)
        bias, padded = None if self.conv.bias is None else self.conv.bias.to(x.dtype), F.pad(x, (1, 1, 1, 1))
        phases = [[F.conv2d(padded[:, :, a:a + height + 1, b:b + width + 1], kernel[a, b], bias)
                   .permute(0, 2, 3, 1) for b in (0, 1)] for a in (0, 1)]
        y = torch.stack([torch.stack(row, 3) for row in phases], 2)  # (B, h, 2, w, 2, C)
        return y.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)


QUICK_ON_CPUS = {Upsample: SubpixelUpsample}
QUICK_IN_BF16 = {GroupNorm: PlanarGroupNorm, Attention: PlainAttention}


def prepare(model: Model, device: str, precision: str) -> Model:
    """Move `model` to the device, in the layout that trains fastest there. Its outputs stay the same."""
    set_fast(model, False)  # keeps activations instead of recomputing them: memory is not short here
    model = model.to(device).to(memory_format=torch.channels_last)
    quick: dict[type, type] = (QUICK_ON_CPUS if device == "cpu" else {}) | (
        QUICK_IN_BF16 if (device, precision) == ("cpu", "bf16") else {})
    for module in model.modules():
        module.__class__ = quick.get(type(module), type(module))
    return model


def draw_images(seeds: range, size: int = 128) -> tuple[Tensor, list[tuple[str, ...]], Tensor]:
    """The procedural images of `seeds` (B, 3, size, size) in [-1, 1], their words, and the masks of their
    damages (B, 1, size, size) in {0, 1}."""
    samples = [draw(seed, size) for seed in seeds]
    image = torch.from_numpy(np.stack([s.image for s in samples])).permute(0, 3, 1, 2).float() / 127.5 - 1
    mask = torch.from_numpy(np.stack([s.mask for s in samples])).float()[:, None]
    return image, [s.words for s in samples], mask


def save_sheet(path: Path, *sets: Tensor) -> None:
    """Write images (B, 3, S, S) in rows of eight; the rows of the sets alternate."""
    parts = zip(*(images.split(8) for images in sets), strict=True)
    rows = torch.cat([torch.cat([*row.unbind()], dim=2) for part in parts for row in part], dim=1)
    tensor_to_image(rows).save(path)


def note(folder: Path, part: str, step: int, numbers: dict[str, float]) -> None:
    """Append a row to <part>.jsonl and make it the part's entry in numbers.json, kept with the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {"step": step, **{name: round(value, 5) for name, value in numbers.items()}}
    with open(folder / f"{part}.jsonl", "a") as log:
        log.write(json.dumps(row) + "\n")
    path = folder / "numbers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | {part: row}, indent=2) + "\n")


def save_component(folder: Path, model: nn.Module, config: dict[str, Any]) -> None:
    """Write one component in diffusers' layout: config.json and a safetensors file with fp16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.float16).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
