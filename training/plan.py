"""--plan: the memory and time that a training needs, printed before it. Nothing is loaded.

Memory and operations are counted from shapes (footprint.py). Time is between what these take at least
(roofline.py) and a multiple of it: by the data sheet of a named card; on this machine by the rates of a
matrix product and of a copy, measured now.
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
from sd.pretrained.weights import DEFAULT_BASE, INPAINTING_BASE, TINY
from training.batches import EpochOrder
from training.config import RunConfig
from training.footprint import Footprint, Step, footprint
from training.kernel_counts import Operation
from training.previews import PREVIEWS
from training.roofline import GPUS, HOST, Gpu, bracket

HERE = "here"
IMAGES, CLASSES = 83, 4  # of DS-MVTec/bottle, for data that are not on this machine
ASSUMED = 1.0  # GiB on a GPU, for the driver and the workspaces of the convolutions


class Card(NamedTuple):
    """A GPU or CPU: its rates, memory in GiB, precision."""

    gpu: Gpu
    memory: float
    precision: str
    cpu: bool = False  # where a step without checkpointing keeps a packed copy of the weights


# TFLOP/s are of dense products with fp32 sums: of RTX cards twice the peak in fp32.
RECALLED = "data sheet, as recalled"
T4, L4, A100, H100 = GPUS
CARDS = [Card(T4, 15, "fp16"), Card(Gpu("V100", 125, 900, RECALLED), 16, "fp16"), Card(A100, 40, "bf16"),
         Card(H100, 80, "bf16"), Card(Gpu("P100", 18.7, 732, RECALLED), 16, "fp16"), Card(L4, 22.5, "bf16"),
         *(Card(Gpu(name, tflops, bandwidth, RECALLED), memory, "bf16")
           for name, memory, tflops, bandwidth in (
               ("A10", 22.5, 125, 600), ("RTX 3060", 12, 25.4, 360), ("RTX 3080", 10, 59.6, 760),
               ("RTX 3090", 24, 71.2, 936), ("RTX 4070", 12, 58.2, 504), ("RTX 4080", 16, 97.4, 717),
               ("RTX 4090", 24, 165.2, 1008), ("RTX 5070", 12, 61.8, 672), ("RTX 5080", 16, 112.6, 960),
               ("RTX 5090", 32, 209.6, 1792)))]


def print_plan(config: RunConfig, *, tokens: int, prompts: bool, in_channels: int = 4, encodings: int = 1,
               control_rank: int | None = None) -> None:
    """Print the memory and time that a training by `config` takes, on the card that --plan names or here.

    tokens: of a class, or with `prompts` the text encoder's; in_channels: of the strategy's UNet; encodings:
    images that the VAE encodes for one example; control_rank: as in footprint.Step. Raises UserError for a
    card that is not known.
    """
    card = _this_machine(config) if not config.plan or config.plan == HERE else _named(config.plan)
    config = dataclasses.replace(config, precision=card.precision)
    if config.base not in (DEFAULT_BASE, INPAINTING_BASE) and not _local(config.base).is_dir():
        print(f"--base {config.base}: not in a folder here, and not fetched; SD 1.5's shapes are assumed",
              file=sys.stderr)
    tokens = shapes(config.base, TEXT).max_position_embeddings if prompts else tokens
    step = Step(dataclasses.replace(shapes(config.base, UNET), in_channels=in_channels),
                shapes(config.base, AUTOENCODER), tokens, control_rank)
    counted, level = _fitting(config, step, card)
    peak, moment = counted.peak / 2**30 + ASSUMED, counted.peak - counted.weights - counted.kept
    steps, seconds = _seconds(config, counted, card.gpu, encodings)
    found = {"card": card.gpu.name, "precision": card.precision, "resolution": config.resolution,
             "batch_size": config.batch_size, "checkpointing": level, "fits": peak <= card.memory,
             "gib": {"there": card.memory, "needed": peak, "weights": counted.weights / 2**30,
                     "kept": counted.kept / 2**30, "for_a_moment": moment / 2**30, "assumed": ASSUMED},
             "steps": steps, "seconds": seconds, "gpu": card.gpu._asdict()}
    print(json.dumps(found) if config.json else _page(found))


def _page(found: dict[str, Any]) -> str:
    """The plan as text."""
    gib, seconds, steps, gpu = found["gib"], found["seconds"], found["steps"], Gpu(**found["gpu"])
    lines = [f"{found['card']}, {found['precision']}, {found['resolution']} px, batches of "
             f"{found['batch_size']}, --checkpointing {found['checkpointing']}: counted from shapes, nothing "
             "was loaded",
             f"memory: {gib['needed']:.1f} GiB of {gib['there']:.0f}: weights {gib['weights']:.2f}, "
             f"activations {gib['kept']:.2f}, gradients, optimizer and short-lived tensors "
             f"{gib['for_a_moment']:.2f}, and {gib['assumed']:g} assumed for the driver and workspaces"]
    if not found["fits"]:
        lines.append("that does not fit: a smaller --batch-size with a larger --accumulate is the same "
                     "training")
    parts = ", ".join(f"{what} {_durations(*each)}" for what, each in seconds.items())
    least, most = (each / steps for each in seconds["steps"])
    lines.append(f"time: {_durations(*map(sum, zip(*seconds.values(), strict=True)))} ({steps} {parts}; "
                 f"{least:.2g} to {most:.2g} s a step)")
    lines.append(f"the first if all operations reach {gpu.tflops:.3g} TFLOP/s or {gpu.bandwidth:.0f} GB/s "
                 f"({gpu.why}); the second {gpu.slower:g} times that, {gpu.because}, or "
                 f"{HOST * 1e6:.0f} us a launch")
    return "\n".join(lines)


def _durations(least: float, most: float) -> str:
    """A range of seconds as people say it: 20 to 40 s, 47 to 104 min, 2 to 4.4 h, 3 to 6.5 days."""
    units = ((1, "s", 100), (60, "min", 100), (3600, "h", 72), (86400, "days", math.inf))
    size, unit, _ = next(each for each in units if least < each[2] * each[0])
    first, second = (f"{n:.2g}" if n < 10 else f"{n:.0f}" for n in (least / size, most / size))
    return f"{first} to {second} {unit}" if first != second else f"{second} {unit}"


def _fitting(config: RunConfig, step: Step, card: Card) -> tuple[Footprint, str]:
    """The step with --checkpointing, and its level: with auto the first that fits, or the last."""
    levels = [config.checkpointing] if config.checkpointing != "auto" else ["none", "lean", "full"]
    for level in levels if config.fast else [level for level in levels if level != "lean"]:
        counted = footprint(config, step, checkpointing=level)
        if card.cpu and config.fast and not config.compile and level == "none":
            counted = counted._replace(weights=counted.weights + counted.packed,
                                       peak=counted.peak + counted.packed)
        if counted.peak / 2**30 + ASSUMED <= card.memory:
            break
    return counted, level


def _seconds(config: RunConfig, counted: Footprint, gpu: Gpu,
             encodings: int) -> tuple[int, dict[str, tuple[float, float]]]:
    """Optimizer steps, and the least and most seconds of steps, encoding and previews. Validation is not
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
    forward = drawn * config.preview_steps * (1 if config.preview_guidance == 1 else 2) / config.batch_size
    batch = counted.operations[:len(counted.operations) - len(counted.update)]
    work = {"steps": [(images / config.batch_size, batch), (steps, counted.update)],
            "encoding": [(encoded * encodings, counted.encoding)], "previews": [(forward, counted.drawing)]}

    def total(parts: list[tuple[float, tuple[Operation, ...]]]) -> tuple[float, float]:
        brackets = [(times, bracket(operations, gpu)) for times, operations in parts]
        least, most = (sum(times * ends[i] for times, ends in brackets) for i in (0, 1))
        return least, most

    return steps, {what: total(parts) for what, parts in work.items()}


def shapes(base: str, part: Component) -> Any:
    """The config of one component of a local base; SD 1.5's for any other base, which is not fetched."""
    file = _local(base) / part.folder / "config.json"
    return read_config(part, file) if file.is_file() else part.config


def _local(base: str) -> Path:
    """The folder that a base is in, if it is one here."""
    return TINY if base == "tiny" else Path(base)


def _named(name: str) -> Card:
    words = {word.removeprefix("RTX").removesuffix("G") for word in re.findall(r"\w+", name.upper())}
    for card in CARDS:  # "Tesla T4", "NVIDIA A100-SXM4-40GB", "rtx4090"
        if card.gpu.name.removeprefix("RTX ") in words:
            return card
    raise UserError(f"--plan {name}: known are {', '.join(card.gpu.name for card in CARDS)}; omit the name "
                    "for this machine")


def _this_machine(config: RunConfig) -> Card:
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rates = Gpu(name, matmul_rate(device, DTYPES[precision]), copy_rate(device), "measured here now")
    if device.type == "cpu":
        rates = rates._replace(slower=4.2, because="as bf16 took on the CPU of docs/performance.md, fp32 1.6")
    return Card(rates, free_memory(device) / 2**30, precision, cpu=device.type == "cpu")


def copy_rate(device: torch.device, size: int = 2**27) -> float:
    """GB/s of the fastest of five copies of `size` bytes, read and written."""
    a, best = torch.zeros(size, dtype=torch.uint8, device=device), float("inf")
    b = torch.empty_like(a)
    for _ in range(5):
        began = time.perf_counter()
        b.copy_(a)[0].item()  # waits for the copy
        best = min(best, time.perf_counter() - began)
    return 2 * size / best / 1e9


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
