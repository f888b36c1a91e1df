"""Where the parts of benchmarks.gpu_check work: a base, photos and a device; and our commands there."""

from __future__ import annotations

import os
import re
import runpy
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.rows import QUIET
from benchmarks.timing import ROOT, Run, steps_done, timed
from runtime.device import DTYPES
from runtime.files import read_rows
from sd.pretrained.components import UNET
from sd.pretrained.weights import load_unet
from sd.unet import UNet
from training.plan import shapes

Found = dict[str, Any]


class Place(NamedTuple):
    """Where a part works, and on what."""

    work: Path
    device: str
    resolution: int

    @property
    def low(self) -> str:
        """The half precision of training."""
        return "fp16" if self.device == "cuda" else "bf16"

    @property
    def ways(self) -> list[tuple[str, str, torch.dtype]]:
        """(name, device, precision) of what is compared: the CPU in fp32, here in fp32, here in half."""
        return [("cpu", "cpu", torch.float32), ("fp32", self.device, torch.float32),
                (self.low, self.device, DTYPES[self.low])]

    def new(self, name: str) -> Path:
        """A folder that is not there yet."""
        return self.work / f"{name}-{os.getpid()}-{time.time_ns()}"

    def words(self, script: str, out: Path, *more: object, precision: str | None = None) -> list[str]:
        """A command line of ours; a training is of the recipe, without previews."""
        training = [*QUIET, "--data", self.work / "bottle", "--resolution", self.resolution]
        words = [script, *(training if script.startswith("train") else []), "--base", self.work / "base",
                 "--precision", precision or self.low, "--device", self.device, "--out", out, *more]
        return list(map(str, words))

    def command(self, script: str, out: Path, *more: object, precision: str | None = None) -> Run:
        """Run it."""
        return timed(self.words(script, out, *more, precision=precision), lambda: steps_done(out),
                     device=self.device)

    def train_here(self, out: Path, *more: object, precision: str | None = None) -> None:
        """The recipe's training in this process, where it can be watched."""
        sys.argv = self.words("train_class.py", out, *more, precision=precision)
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")

    def steps(self, *more: object, script: str = "train_class.py", count: int = 4) -> Found:
        """A training of a few steps: seconds a step after the first, memory, what it said of its end."""
        out = self.new("steps")
        run = self.command(script, out, "--max-steps", count, *more)
        rows = [row for row in read_rows(out / "metrics.jsonl") if "seconds" in row]
        peak = re.search(r"peak memory (\S+) GiB", run.said)
        return {"seconds": statistics.median(row["seconds"] for row in rows[1:]),
                "previews": len(list((out / "previews").glob("*.png"))),
                "card_gib": round(run.memory, 2), "allocated_gib": float(peak[1]) if peak else None,
                "loss": rows[-1]["loss"], "skipped": rows[-1]["skipped"]}

    def run_folder(self) -> Path:
        """A class checkpoint, trained at the first call."""
        out = self.work / "class"
        if not (out / "adapter.safetensors").exists():
            self.command("train_class.py", out, "--max-steps", 2, "--class-dropout", 0.1)
        return out


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest value."""
    return float(f"{(one.cpu().float() - other.cpu().float()).abs().max() / other.abs().max():.3g}")


def compared(place: Place, results: dict[str, Tensor]) -> Found:
    """The results of all `ways`, as how far they are from each other."""
    return {"fp32 against the CPU": relative(results["fp32"], results["cpu"]),
            f"{place.low} against fp32": relative(results[place.low], results["fp32"])}


def noise_batch(place: Place, images: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t and contexts of one token."""
    rng, side = torch.Generator().manual_seed(0), place.resolution // 8
    width = shapes(str(place.work / "base"), UNET).cross_attention_dim
    return (torch.randn(images, 4, side, side, generator=rng), torch.arange(1, images + 1) * 300,
            torch.randn(images, 1, width, generator=rng))


def unet_of(place: Place, device: str, dtype: torch.dtype) -> UNet:
    """The base's UNet."""
    return load_unet(str(place.work / "base"), device=torch.device(device), dtype=dtype)
