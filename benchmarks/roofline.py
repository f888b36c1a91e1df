"""Launches, FLOPs, bytes moved and kept activations, counted from shapes: ours beside diffusers + peft.

Needs no GPU and loads nothing. Counted are a training step at SD 1.5's size, 512 px and fp16, from the noised
latents to the new weights, of each strategy, for contexts of 1 and 4 tokens and batches of 1 and 4; and a
guided sampling step. diffusers + peft at their best: latents encoded once (which is why the VAE is in no
row but the stock example's), convolutions channels last, fused AdamW. What counts as a launch, and what is
moved, says training/kernel_counts.py. From the counts follow lower bounds of the time on common GPUs.

The results go to benchmarks/roofline.json. Counting all takes minutes; the rivals' counts change with their
versions alone, so --ours takes these from the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import roofline_rival as rival
from benchmarks.timing import ROOT
from runtime import errors
from runtime.cli import flag, parse
from runtime.files import save_json
from sd.exact_shortcuts import set_fast
from sd.guidance import Contexts, guided
from sd.inpainting import CHANNELS
from sd.unet import UNet, UNetConfig
from sd.vae import VAEConfig
from training.config import RunConfig, TrainConfig
from training.footprint import Step, footprint
from training.kernel_counts import Operation, counted, flops, moved
from training.roofline import GPUS, floor

OURS = ("none", "lean")  # --checkpointing
GOALS = {"launches": 0.55, "moved": 0.6, "flops": 0.97, "kept": 0.35}  # of diffusers + peft at their best
LEAN_KEPT = 0.30
STRATEGIES = ("A", "B1", "B2")  # B2: a whole ControlNet


class Work(NamedTuple):
    """What is counted. strategy "sampling": one guided step of `batch` images."""

    strategy: str
    tokens: int
    batch: int


WORKS = [*(Work(strategy, tokens, batch) for strategy in STRATEGIES for tokens in (1, 4) for batch in (1, 4)),
         Work("sampling", 1, 1), Work("sampling", 1, 4), Work("sampling", 4, 1), Work("sampling", 4, 4)]


@dataclass
class Config:
    """The command line of benchmarks.roofline."""

    only: str = flag("", "count only rows whose name contains this, such as 'A, 1 token'; writes no file")
    ours: bool = flag(False, "count ours alone, and take the others' counts from the file")
    json: bool = flag(False, "print the result as one JSON object")


def name_of(work: Work) -> str:
    """Such as "A, 1 token, batch 4"."""
    return f"{work.strategy}, {work.tokens} token{'s' * (work.tokens > 1)}, batch {work.batch}"


def row(operations: tuple[Operation, ...], kept: int) -> dict[str, Any]:
    """The counts of one contender, and the least milliseconds on each GPU. kept: bytes."""
    return {"launches": len(operations), "flops": flops(operations), "moved": moved(operations), "kept": kept,
            "floor_ms": {gpu.name: round(1e3 * floor(operations, gpu), 1) for gpu in GPUS}}


def ours(work: Work, level: str) -> dict[str, Any]:
    """Our training step with --checkpointing `level`."""
    unet = UNetConfig(in_channels=CHANNELS if work.strategy == "B1" else 4)
    kind = RunConfig if work.strategy == "B2" else TrainConfig
    config = kind(data=["x"], precision="fp16", batch_size=work.batch)
    step = footprint(config, Step(unet, VAEConfig(), work.tokens, 0 if work.strategy == "B2" else None),
                     checkpointing=level)
    return row(step.operations, step.kept)


def our_sampling(work: Work) -> dict[str, Any]:
    """Our guided step: the UNet's part of it, after the first, which projects the context."""
    with counted() as count, torch.no_grad():
        unet = rival.in_dtype(UNet)
        set_fast(unet, True)
        contexts = Contexts(*torch.randn(2, work.batch, work.tokens, 768))
        eps, z_t = guided(unet, contexts, 2.0), torch.randn(work.batch, 4, 64, 64)
        eps(z_t, 981)
        count.take()
        eps(z_t, 961)
        return row(count.take(), 0)


def our_counts(work: Work) -> dict[str, dict[str, Any]]:
    """Name -> counts."""
    if work.strategy == "sampling":
        return {"ours": our_sampling(work)}
    return {f"ours, {level}": ours(work, level) for level in OURS}


def rival_counts(work: Work) -> dict[str, dict[str, Any]]:
    """Name -> counts."""
    if work.strategy == "sampling":
        return {rival.BEST: row(*rival.sampling(*work[1:]))}
    return {rival.BEST: row(*rival.training(*work)), rival.STOCK: row(*rival.training(*work, stock=True))}


def on_record(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The rivals' counts in a result file, by the row's name."""
    rows = json.loads(file.read_text())["rows"]
    return {found["what"]: {name: counts for name, counts in found["contenders"].items()
                            if not name.startswith("ours")} for found in rows}


def compared(work: Work, rivals: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """A row of the file: the counts, and ours as shares of diffusers + peft's at their best.

    rivals: their counts, where these are known.
    """
    rows = our_counts(work) | (rivals or rival_counts(work))
    best = rows[rival.BEST]
    for name, counts in rows.items():
        if name.startswith("ours"):
            counts["share"] = {key: round(counts[key] / best[key], 3) for key in GOALS if best[key]}
    return {"what": name_of(work), **work._asdict(), "contenders": rows, "goals": met(rows)}


def met(rows: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Whether a row's shares reach the goals: those of `none`, and what `lean` keeps."""
    shares = (rows.get("ours") or rows["ours, none"])["share"]
    reached = {key: shares[key] <= goal for key, goal in GOALS.items() if key in shares}
    if "ours, lean" in rows:
        reached["kept, lean"] = rows["ours, lean"]["share"]["kept"] <= LEAN_KEPT
    return reached


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown."""
    names = [gpu.name for gpu in GPUS]
    lines = [f"| | launches | TFLOP | GB moved | MiB kept an image | least ms on {', '.join(names)} |",
             "|---|---|---|---|---|---|"]
    for found in rows:
        for name, counts in found["contenders"].items():
            least = ", ".join(f"{counts['floor_ms'][gpu]:.0f}" for gpu in names)
            kept = counts["kept"] / found["batch"] / 2**20
            lines.append(f"| {found['what']}: {name} | {counts['launches']:,} | {counts['flops'] / 1e12:.2f} "
                         f"| {counts['moved'] / 1e9:.1f} | {kept:.0f} | {least} |")
    return "\n".join(lines)


def main() -> None:
    """Count, write the file, print the table."""
    config = parse(Config, __doc__, "", program="-m benchmarks.roofline")
    file = ROOT / "benchmarks/roofline.json"
    rivals = on_record(file) if config.ours else {}
    rows = [compared(work, rivals.get(name_of(work))) for work in WORKS if config.only in name_of(work)]
    result = {"versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
              "size": "SD 1.5, 512 px, fp16", "goals": {**GOALS, "kept, lean": LEAN_KEPT},
              "gpus": [gpu._asdict() for gpu in GPUS], "rows": rows}
    if not config.only:
        save_json(file, result)
    print(json.dumps(result) if config.json else table(rows))


if __name__ == "__main__":
    errors.run(main)
