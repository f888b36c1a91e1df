"""LoRA files of others in our models: as the start of a training, or added to a base at sampling."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from errors import UserError
from formats import read_lora
from lora import adapters


@torch.no_grad()
def start_from(model: nn.Module, path: Path) -> None:
    """Give an injected UNet the LoRA in `path`, of any layout, to go on from: it then computes the same.

    Its A and B take the first rows and columns of ours; what is left of a larger rank stays fresh, its B 0.
    Raises UserError where it does not fit: it has layers that are not trained here, or a larger rank.
    """
    layers, own = read_lora(path).layers, {f"unet.{name}": layer for name, layer in adapters(model)}
    if others := sorted(layers.keys() - own.keys()):
        raise UserError(f"--init-lora {path}: also adapts {others[0]} ({len(others)} such layers), which is "
                        "not trained here; such a file can be added at sampling (sample.py --lora)")
    for name, (A, B, alpha) in layers.items():
        layer, rank = own[name], B.shape[1]
        if rank > layer.rank:
            raise UserError(f"--init-lora {path}: {name} has rank {rank}; give --rank {rank} or more")
        if A.shape[1:] != layer.lora_A.weight.shape[1:] or len(B) != layer.out_features:
            raise UserError(f"--init-lora {path}: {name} goes from {tuple(A.shape[1:])} to {len(B)}, in this "
                            f"base from {layer.in_features} to {layer.out_features}; it is for another base")
        layer.lora_A.weight[:rank] = A
        layer.lora_B.weight[:, :rank] = B.float() * (alpha / rank / (layer.alpha / layer.rank))


@torch.no_grad()
def add(model: nn.Module, component: str, path: Path, strength: float) -> None:
    """Add the LoRA in `path`, of any layout, to the weights of `model`, a base's unet or text_encoder.

    W += strength * alpha / rank * B A, for linear layers and convolutions. Raises UserError where the base
    has no such layer, or one of another shape.
    """
    modules = dict(model.named_modules())
    for full_name, layer in read_lora(path).layers.items():
        owner, _, name = full_name.partition(".")
        name = name.removeprefix("text_model.")  # in the files, no longer in transformers' model
        if owner != component:
            continue
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or weight.shape != layer.shape:
            has = "no such layer" if weight is None else f"one of {tuple(weight.shape)}"
            raise UserError(f"--lora {path}: adapts {name}, of {layer.shape}; the base has {has}")
        weight.add_(layer.delta().to(weight.device), alpha=strength)


def say_unused(path: Path) -> None:
    """Say on stderr which part of the LoRA in `path` does nothing where no prompt is read."""
    count = sum(name.startswith("text_encoder.") for name in read_lora(path).layers)
    if count:
        print(f"--lora {path}: its {count} layers for the text encoder have no effect, for this checkpoint's "
              "damage types are no prompts (--context class)", file=sys.stderr)
