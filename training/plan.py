"""--plan: the memory and time that a training needs, printed before it. Nothing is loaded.

Memory and arithmetic are counted from shapes (footprint.py). Time is arithmetic over a rate: on a named card
the rate that SD 1.5 has reached in public; on this machine half the rate of a matrix product measured now,
because public runs on a T4 reach about half of that.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data import load_dataset
from runtime.device import DTYPES, choose_device, choose_precision, free_memory
from runtime.errors import UserError
from sd.pretrained.components import AUTOENCODER, TEXT, UNET, Component, read_config
from sd.pretrained.weights import TINY
from training.batches import EpochOrder
from training.config import RunConfig
from training.footprint import Footprint, Step, footprint
from training.previews import PREVIEWS

HERE = "here"
IMAGES, CLASSES = 83, 4  # of DS-MVTec/bottle, for data that are not on this machine
ASSUMED = 1.0  # GiB on a GPU, for the driver and the workspaces of the convolutions


class Card(NamedTuple):
    """A GPU or CPU: memory in GiB, precision, TFLOP/s that the training is assumed to reach, and why."""

    name: str
    memory: float
    precision: str
    rate: float
    why: str
    cpu: bool = False  # where a step without checkpointing keeps a packed copy of the weights


# Peaks are of dense half-precision matrix products with fp32 sums, from data sheets; of RTX cards twice the
# peak in fp32.
DIFFUSERS = "as diffusers reported for batches of 4 on it, PyTorch 2.0, not compiled"
CARDS = [Card("T4", 15, "fp16", 11.5, f"{DIFFUSERS}; its 70 W limit matrix products to 24"),
         Card("V100", 16, "fp16", 38, DIFFUSERS),
         Card("A100", 40, "bf16", 75, DIFFUSERS),
         Card("H100", 80, "bf16", 88, "as stable-fast reported for single images on it in plain PyTorch"),
         Card("P100", 16, "fp16", 7.5, "assumed: 0.4 of its peak of 18.7, as it has no tensor cores"),
         *(Card(name, memory, "bf16", peak / 5, f"assumed: a fifth of its peak of {peak:g}; T4, V100 and "
                "A100 reached 18, 30 and 24 % of theirs")
           for name, memory, peak in (
               ("L4", 22.5, 121), ("A10", 22.5, 125), ("RTX 3060", 12, 25.4), ("RTX 3080", 10, 59.6),
               ("RTX 3090", 24, 71.2), ("RTX 4070", 12, 58.2), ("RTX 4080", 16, 97.4),
               ("RTX 4090", 24, 165.2), ("RTX 5070", 12, 61.8), ("RTX 5080", 16, 112.6),
               ("RTX 5090", 32, 209.6)))]


def print_plan(config: RunConfig, *, tokens: int, prompts: bool, in_channels: int = 4, encodings: int = 1,
               control_rank: int | None = None) -> None:
    """Print the memory and time that a training by `config` takes, on the card that --plan names or here.

    tokens: of a class, or with `prompts` the text encoder's; in_channels: of the strategy's UNet; encodings:
    images that the VAE encodes for one example; control_rank: as in footprint.Step. Raises UserError for a
    card without a public number.
    """
    card = _this_machine(config) if not config.plan or config.plan == HERE else _named(config.plan)
    config = dataclasses.replace(config, precision=card.precision)
    tokens = shapes(config.base, TEXT).max_position_embeddings if prompts else tokens
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
    """The plan as text."""
    gib, seconds, steps = found["gib"], found["seconds"], found["steps"]
    lines = [f"{found['card']}, {found['precision']}, {found['resolution']} px, batches of "
             f"{found['batch_size']}, --checkpointing {found['checkpointing']}: counted from shapes, nothing "
             "was loaded",
             f"memory: {gib['needed']:.1f} GiB of {gib['there']:.0f}: weights {gib['weights']:.2f}, "
             f"activations {gib['kept']:.2f}, gradients, optimizer and short-lived tensors "
             f"{gib['for_a_moment']:.2f}, and {gib['assumed']:g} assumed for the driver and workspaces"]
    if not found["fits"]:
        lines.append("that does not fit: a smaller --batch-size with a larger --accumulate is the same "
                     "training")
    parts = ", ".join(f"{what} {_duration(each)}" for what, each in seconds.items())
    lines.append(f"time: {_duration(sum(seconds.values()))} ({steps} {parts}; "
                 f"{seconds['steps'] / steps:.2g} s a step), if {found['tflops']:.3g} TFLOP/s are reached, "
                 f"{found['tflops_because']}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.4 h, 6.5 days."""
    units = ((1, "s", 100), (60, "min", 100), (3600, "h", 72), (86400, "days", math.inf))
    size, unit, _ = next(each for each in units if seconds < each[2] * each[0])
    number = seconds / size
    return f"{number:.2g} {unit}" if number < 10 else f"{number:.0f} {unit}"


def _fitting(config: RunConfig, step: Step, card: Card) -> tuple[Footprint, str]:
    """The step with --checkpointing, and its level: with auto the first that fits, or the last."""
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
    """Optimizer steps, and the seconds of steps, encoding and previews at `rate` TFLOP/s. Validation is not
    counted.
    """
    items, classes, epochs = IMAGES, CLASSES, config.epochs
    if all(Path(name).exists() for name in config.data):
        dataset = load_dataset(config)
        items, classes = len(dataset), len(dataset.classes)
    else:
        print(f"{' '.join(config.data)}: not on this machine; {IMAGES} images are assumed", file=sys.stderr)
    an_epoch = EpochOrder(items, config.batch_size, config.accumulate, config.seed).steps_per_epoch
    steps = min(epochs * an_epoch, config.max_steps or sys.maxsize)
    images = steps / an_epoch * items
    encoded = min(images, items * config.latent_variants or images)
    drawn = steps // an_epoch // config.preview_every * classes * PREVIEWS if config.preview_every else 0
    forward = counted.forward / config.batch_size * (1 if config.preview_guidance == 1 else 2)
    flops = {"steps": images * counted.step / config.batch_size,
             "encoding": encoded * encodings * counted.encode,
             "previews": drawn * config.preview_steps * forward}
    return steps, {what: each / rate / 1e12 for what, each in flops.items()}


def shapes(base: str, part: Component) -> Any:
    """The config of one component of a local base; SD 1.5's for any other base, which is not fetched."""
    file = (TINY if base == "tiny" else Path(base)) / part.folder / "config.json"
    return read_config(part, file) if file.is_file() else part.config


def _named(name: str) -> Card:
    words = {word.removeprefix("RTX").removesuffix("G") for word in re.findall(r"\w+", name.upper())}
    for card in CARDS:  # "Tesla T4", "NVIDIA A100-SXM4-40GB", "rtx4090"
        if card.name.removeprefix("RTX ") in words:
            return card
    raise UserError(f"--plan {name}: known are {', '.join(card.name for card in CARDS)}; omit the name "
                    "for this machine")


def _this_machine(config: RunConfig) -> Card:
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rate = matmul_rate(device, DTYPES[precision]) / 2
    why = "half of what a matrix product reaches here now; public runs on a T4 reach half of it"
    return Card(name, free_memory(device) / 2**30, precision, rate, why, cpu=device.type == "cpu")


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """TFLOP/s of the fastest of five products of square matrices, of `side` or less where that takes long: a
    CPU without instructions for bf16 needs minutes."""
    size = min(256, side)
    while True:
        a, best = torch.randn(size, size, device=device).to(dtype), float("inf")
        for _ in range(5):
            began = time.perf_counter()
            (a @ a)[0, 0].item()  # waits for the product
            best = min(best, time.perf_counter() - began)
        if size == side or 8 * best > 0.5:
            return 2 * size**3 / best / 1e12
        size *= 2
