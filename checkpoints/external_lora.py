"""LoRA files of any program in our models: to start a training from, or added to a base at sampling."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import nn

from checkpoints.lora_formats import Layer, find_lora, read_lora
from lora import adapters
from runtime.errors import UserError


@torch.no_grad()
def start_from(model: nn.Module, path: Path) -> None:
    """Fill an injected UNet's adapters from the LoRA file `path`, so that they compute the file's update.

    Its A and B become the first rows and columns of ours; a larger rank's remaining B stays 0. Raises
    UserError where the file is for another base, adapts layers not trained here, or has a larger rank.
    """
    layers, own = read_lora(path).layers, {f"unet.{name}": layer for name, layer in adapters(model)}
    unet = {name: layer for name, layer in layers.items() if name.startswith("unet.")}
    for name, layer in unet.items():
        _base_weight(model, name.partition(".")[2], layer, f"--init-lora {path}")
    if others := sorted(layers.keys() - own.keys()):
        raise UserError(f"--init-lora {path}: also adapts {others[0]} ({len(others)} such layers), which is "
                        "not trained here; such a file can be added at sampling (sample.py --lora)")
    for name, (A, B, alpha) in unet.items():
        ours, rank = own[name], B.shape[1]
        if rank > ours.rank:
            raise UserError(f"--init-lora {path}: {name} has rank {rank}; give --rank {rank} or more")
        ours.lora_A.weight[:rank] = A
        ours.lora_B.weight[:, :rank] = B.float() * (alpha / rank / (ours.alpha / ours.rank))


@torch.no_grad()
def add(model: nn.Module, component: str, path: Path, strength: float) -> None:
    """Add the LoRA file `path` to the weights of `model`, a base's unet or text_encoder.

    W += strength * alpha / rank * B A, for linear layers and convolutions. Raises UserError where the file is
    for another base.
    """
    for name, layer in read_lora(path).layers.items():
        owner, _, module = name.partition(".")
        if owner == component:
            weight = _base_weight(model, module.removeprefix("text_model."), layer, f"--lora {path}")
            weight.add_(layer.delta().to(weight.device), alpha=strength)


def _base_weight(model: nn.Module, name: str, layer: Layer, flag: str) -> torch.Tensor:
    """The weight that `layer` adapts. Raises UserError where the model has none, or one of another shape."""
    weight = getattr(dict(model.named_modules()).get(name), "weight", None)
    if weight is None or weight.shape != layer.shape:
        has = "no such layer" if weight is None else f"one of {tuple(weight.shape)}"
        raise UserError(f"{flag}: adapts {name}, of {layer.shape}; this base has {has}, so the file is for "
                        "another base")
    return weight


def warn_unused(path: Path) -> None:
    """Say on stderr which layers of the LoRA file `path` have no effect where no prompt is read."""
    count = sum(name.startswith("text_encoder.") for name in read_lora(path).layers)
    if count:
        print(f"--lora {path}: its {count} layers for the text encoder have no effect, because this "
              "checkpoint's damage types are no prompts (--context class)", file=sys.stderr)


def given_files(texts: list[str]) -> list[tuple[Path, float]]:
    """--lora: "style.safetensors=0.6" -> its file and strength; without "=" the strength is 1."""
    pairs = []
    for text in texts:
        name, _, strength = text.rpartition("=")
        try:
            pairs.append((Path(name), float(strength)) if name else (Path(text), 1.0))
            if not math.isfinite(pairs[-1][1]):
                raise ValueError
        except ValueError:
            raise UserError(f"--lora {text}: expected FILE=STRENGTH, such as style.safetensors=0.6") from None
    return [(find_lora(file), strength) for file, strength in pairs]
