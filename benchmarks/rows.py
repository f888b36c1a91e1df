"""The rows of the benchmark's table: which commands are compared, at which size, and what is timed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.timing import Run, steps_done, timed
from runtime.files import is_private
from sd.pretrained.components import AUTOENCODER, UNET
from training.config import TrainConfig
from training.footprint import Footprint, Step, footprint
from training.plan import shapes

PEER = "benchmarks/peer.py"
BEST, STOCK = "diffusers + peft", "diffusers + peft, stock example"
QUIET = ["--preset", "recipe", "--preview-every", "0", "--latent-variants", "1"]
STEPS = 3  # of a training run; the first is not counted
FEW, MORE = 2, 6  # DDIM steps of two sampling runs, from which the time of DDIM_STEPS is extrapolated
DDIM_STEPS = 50


class Row(NamedTuple):
    """A comparison. tflop: the arithmetic of what is timed; first: what seconds_to_first waits for."""

    precision: str
    resolution: int
    batch: int
    tflop: float
    first: str
    contenders: dict[str, Callable[[], Run]]  # name -> runs it once


class Place(NamedTuple):
    """Base, data and folders of the rows' commands."""

    base: str
    data: str
    work: Path
    device: str

    def common(self, precision: str) -> list[str]:
        """Flags of every command."""
        return ["--precision", precision, "--device", self.device]

    def new(self) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(dir=self.work))

    def checkpoint(self, resolution: int) -> str:
        """A class checkpoint to sample from or to train on, made at the first call."""
        out = self.work / f"trained {resolution}" / "run"
        # What a killed run left is no checkpoint; the same command begins it again.
        if not (out / "adapter.safetensors").exists():
            timed(["train_class.py", *QUIET, "--data", self.data, "--base", self.base,
                   "--class-dropout", "0.1", "--resolution", str(resolution), "--max-steps", "1",
                   "--batch-size", "1", "--device", self.device, "--out", str(out)], lambda: 0)
        return str(out)


@cache
def arithmetic(base: str, resolution: int, batch: int, control_rank: int | None = None) -> Footprint:
    """Arithmetic of a training step, counted from shapes."""
    config = TrainConfig(data=[""], resolution=resolution, batch_size=batch, precision="fp32")
    step = Step(shapes(base, UNET), shapes(base, AUTOENCODER), control_rank=control_rank)
    return footprint(config, step, checkpointing="none")


def training(place: Place, precision: str, resolution: int, contenders: dict[str, list[str]],
             control_rank: int | None = None) -> Row:
    """Steps of one image. contenders: name -> the command, up to the flags that all have."""
    def once(command: list[str]) -> Run:
        out = place.new() / "run"
        return timed([*command, "--base", place.base, "--resolution", str(resolution), "--data", place.data,
                      "--batch-size", "1", "--max-steps", "100000", *place.common(precision),
                      "--out", str(out)],
                     lambda: steps_done(out), STEPS, place.device)

    counted = arithmetic(place.base, resolution, 1, control_rank)
    return Row(precision, resolution, 1, counted.step / 1e12, "step",
               {name: partial(once, command) for name, command in contenders.items()})


def images_in(folder: Path) -> int:
    """The number of finished images in a folder, while another process writes there."""
    # os.walk passes over folders that vanish meanwhile; Path.rglob raises an error
    return sum(name[0].isdigit() and name.endswith(".png") for place, _, names in os.walk(folder)
               if not is_private(os.path.basename(place)) for name in names)


def sampling(place: Place, precision: str, resolution: int, batch: int, *rival: str) -> Row:
    """A batch of images of DDIM_STEPS guided steps, from two runs of fewer, each sampling two batches."""
    def batches(out: Path) -> int:
        return images_in(out) // batch

    def once(command: list[str]) -> Run:
        runs = {}
        for steps in (FEW, MORE):
            out = place.new()
            runs[steps] = timed(
                [*command, "--base", place.base, "--batch-size", str(batch), "--per-class", str(2 * batch),
                 "--guidance", "2", *place.common(precision), "--steps", str(steps), "--out", str(out)],
                partial(batches, out), 2, place.device)
        few, more = (runs[steps].each[0] for steps in (FEW, MORE))
        rest = (DDIM_STEPS - FEW) * (more - few) / (MORE - FEW)
        return Run([few + rest], runs[FEW].start, max(run.memory for run in runs.values()))

    ours = ["sample.py", "--ckpt", place.checkpoint(resolution), "--classes", "good"]
    theirs = [PEER, "sample", "--resolution", str(resolution), *rival]
    return Row(precision, resolution, batch,
               2 * DDIM_STEPS * arithmetic(place.base, resolution, batch).forward / 1e12,
               f"image of {FEW} steps", {"ours": partial(once, ours), BEST: partial(once, theirs)})


def table(place: Place, full: int) -> dict[str, Callable[[], Row]]:
    """Name -> function that makes the row. Images of `full` pixels; slow rows have half of that."""
    low, half = "bf16" if place.device == "cpu" else "fp16", full // 2
    ours = ["train_class.py", *QUIET]
    steps = {"ours": ours, **{f"ours, --checkpointing {level}": [*ours, "--checkpointing", level]
                              for level in ("lean", "full")},
             BEST: [PEER, "train"], STOCK: [PEER, "train", "--stock"]}
    inpaint = {"ours": ["train_inpaint.py", *QUIET], BEST: [PEER, "train", "--strategy", "inpaint"]}

    def control() -> Row:
        whole = ["train_controlnet.py", *QUIET, "--control-rank", "0", "--accumulate", "1",
                 "--class-ckpt", place.checkpoint(full)]
        rival = [PEER, "train", "--strategy", "control"]
        return training(place, low, full, {"ours": whole, "diffusers": rival}, control_rank=0)

    guided = f"guided DDIM-{DDIM_STEPS}"
    return {
        f"training step, {low}": lambda: training(place, low, full, steps),
        f"{guided}, one image, {low}": lambda: sampling(place, low, full, 1),
        "training step, fp32": lambda: training(place, "fp32", full, {name: steps[name] for name in
                                                                      ("ours", BEST, STOCK)}),
        f"{guided}, one image, fp32": lambda: sampling(place, "fp32", half, 1),
        f"{guided}, eight images, {low}": lambda: sampling(place, low, half, 8),
        f"training step, inpainting, {low}": lambda: training(place, low, full, inpaint),
        f"training step, whole ControlNet, {low}": control,
        f"{guided}, one image, {low}, rival compiled": lambda: sampling(place, low, half, 1, "--compile")}
