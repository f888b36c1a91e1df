"""--plan: what a training will need and how long it will take, said before it begins. Nothing is loaded.

Memory and arithmetic are counted from shapes (footprint.py). Time is arithmetic over a rate: for a card that
is named, what SD 1.5 has reached on it in public; for the machine at hand, half of what its matrix products
reach now, since on a T4 public runs reach about half of that.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from batches import Plan
from data import load_dataset
from errors import UserError
from footprint import Footprint, Step, footprint
from machine import DTYPES, choose_device, choose_precision, free_memory
from recipe import RunConfig
from sd.parts import AUTOENCODER, UNET, Part, read_config
from sd.weights import TINY

HERE = "here"
IMAGES, CLASSES = 83, 4  # of DS-MVTec/bottle, for data that are not on this machine
PREVIEWS = 4  # images a class
ASSUMED = 1.0  # GiB on a GPU, for the driver and the workspaces of the convolutions


class Card(NamedTuple):
    """What trains: memory in GiB, precision, TFLOP/s that the training is assumed to reach, and why so."""

    name: str
    memory: float
    precision: str
    rate: float
    why: str
    cpu: bool = False  # where a step without checkpointing has its weights lie ready twice


DIFFUSERS = "as diffusers drew batches of 4 on it by its own numbers, PyTorch 2.0, not compiled"
CARDS = [Card("T4", 15, "fp16", 11.5, f"{DIFFUSERS}; its 70 W allow matrix products 24 at most"),
         Card("V100", 16, "fp16", 38, DIFFUSERS),
         Card("A100", 40, "bf16", 75, DIFFUSERS),
         Card("H100", 80, "bf16", 88, "as plain PyTorch drew single images on it by stable-fast's numbers")]


def print_plan(config: RunConfig, *, tokens: int, in_channels: int = 4, encodings: int = 1,
               control_rank: int | None = None) -> None:
    """Say what memory and time a training by `config` takes, on the card that --plan names or here.

    tokens: a class; in_channels: of the strategy's UNet; encodings: pictures that the VAE sees for one image;
    control_rank: as in footprint.Step. Raises UserError for a card of which no public number is known here.
    """
    card = _this_machine(config) if config.plan == HERE else _named(config.plan)
    config = dataclasses.replace(config, precision=card.precision)
    step = Step(dataclasses.replace(shapes(config.base, UNET), in_channels=in_channels),
                shapes(config.base, AUTOENCODER), tokens, control_rank)
    counted, level = _fitting(config, step, card)
    peak, moment = counted.peak / 2**30 + ASSUMED, counted.peak - counted.weights - counted.kept
    steps, seconds = _seconds(config, counted, card.rate, encodings)
    found = {"card": card.name, "precision": card.precision, "resolution": config.resolution,
             "batch_size": config.batch_size, "checkpointing": level, "fits": peak <= card.memory,
             "gib": {"there": card.memory, "needed": peak, "weights": counted.weights / 2**30,
                     "kept": counted.kept / 2**30, "for_a_moment": moment / 2**30, "assumed": ASSUMED},
             "steps": steps, "seconds": seconds, "tflops": card.rate, "tflops_because": card.why}
    print(json.dumps(found) if config.json else _page(found))


def _page(found: dict[str, Any]) -> str:
    """The plan to be read."""
    gib, seconds, steps = found["gib"], found["seconds"], found["steps"]
    lines = [f"{found['card']}, {found['precision']}, {found['resolution']} px, batches of "
             f"{found['batch_size']}, --checkpointing {found['checkpointing']}: counted from shapes, nothing "
             "was loaded",
             f"memory: {gib['needed']:.1f} GiB of {gib['there']:.0f}: weights {gib['weights']:.2f}, "
             f"activations kept {gib['kept']:.2f}, gradients, optimizer and what is there for a moment "
             f"{gib['for_a_moment']:.2f}, and {gib['assumed']:g} assumed for the driver and workspaces"]
    if not found["fits"]:
        lines.append("that does not fit: a smaller --batch-size with a larger --accumulate is the same "
                     "training")
    parts = ", ".join(f"{what} {each / 60:.2g}" for what, each in seconds.items())
    lines.append(f"time: {sum(seconds.values()) / 60:.3g} min ({steps} {parts}; "
                 f"{seconds['steps'] / steps:.2g} s a step), if {found['tflops']:.3g} TFLOP/s are reached, "
                 f"{found['tflops_because']}")
    return "\n".join(lines)


def _fitting(config: RunConfig, step: Step, card: Card) -> tuple[Footprint, str]:
    """The step by --checkpointing, and which that is: with auto the first that fits, or the last."""
    levels = [config.checkpointing] if config.checkpointing != "auto" else ["none", "lean", "full"]
    for level in levels if config.fast else [level for level in levels if level != "lean"]:
        counted = footprint(config, step, checkpointing=level)
        if card.cpu and config.fast and level == "none":
            counted = counted._replace(weights=counted.weights + counted.packed,
                                       peak=counted.peak + counted.packed)
        if counted.peak / 2**30 + ASSUMED <= card.memory:
            break
    return counted, level


def _seconds(config: RunConfig, counted: Footprint, rate: float,
             encodings: int) -> tuple[int, dict[str, float]]:
    """Optimizer steps, and how long they, encoding and previews take at `rate` TFLOP/s. Validation is not
    counted.
    """
    items, classes, epochs = IMAGES, CLASSES, config.epochs
    if all(Path(name).exists() for name in config.data):
        dataset = load_dataset(config)
        items, classes = len(dataset), len(dataset.classes)
    else:
        print(f"{' '.join(config.data)}: not on this machine; {IMAGES} images are assumed", file=sys.stderr)
    an_epoch = Plan(items, config.batch_size, config.accumulate, config.seed).steps_per_epoch
    steps = min(epochs * an_epoch, config.max_steps or sys.maxsize)
    images = steps / an_epoch * items
    encoded = min(images, items * config.latent_variants or images)
    drawn = steps // an_epoch // config.preview_every * classes * PREVIEWS if config.preview_every else 0
    a_look = counted.forward / config.batch_size * (1 if config.preview_guidance == 1 else 2)
    flops = {"steps": images * counted.step / config.batch_size,
             "encoding": encoded * encodings * counted.encode,
             "previews": drawn * config.preview_steps * a_look}
    return steps, {what: each / rate / 1e12 for what, each in flops.items()}


def shapes(base: str, part: Part) -> Any:
    """The config of one part of a local base; of any other, which is not fetched for this, SD 1.5's."""
    file = (TINY if base == "tiny" else Path(base)) / part.folder / "config.json"
    return read_config(part, file) if file.is_file() else part.config


def _named(name: str) -> Card:
    for card in CARDS:
        if card.name == name.upper():
            return card
    raise UserError(f"--plan {name}: known are {', '.join(card.name for card in CARDS)}; without a name "
                    "it is this machine")


def _this_machine(config: RunConfig) -> Card:
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rate = matmul_rate(device, DTYPES[precision]) / 2
    why = "half of what a matrix product reaches here now, as public runs do on a T4"
    return Card(name, free_memory(device) / 2**30, precision, rate, why, cpu=device.type == "cpu")


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """TFLOP/s of the best of a few products of square matrices."""
    a = torch.randn(side, side, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # which waits for it
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best / 1e12
