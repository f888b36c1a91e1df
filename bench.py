"""This project beside diffusers + peft: the same work as commands, in turns. Seconds, start-up, peak memory.

Both load the same base from disk and do the same steps at the same size, batch and precision. Compared is
what a person waits for: each round runs every contender as a process of its own.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

import errors
from config import flag, parse
from demo import write_demo
from errors import UserError
from files import save_json, save_tensors
from sd.inpainting import FOLDER as INPAINTING
from sd.parts import AUTOENCODER, UNET, WEIGHTS

ROOT = Path(__file__).resolve().parent
# A small process in between, for the peak of a child counts that of the process that started it.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print("peak:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""
EXAMPLE = """example:
  python bench.py                      # SD 1.5's size with random weights, on the CPU
  python bench.py --base tiny --resolution 128 --batch-size 8
"""


@dataclass
class Config:
    """The command line of bench.py."""

    base: str = flag("random", "random: SD 1.5's size, random weights; or tiny, or a folder", group="what")
    resolution: int = flag(512, "side of the images in pixels", group="what", minimum=64)
    batch_size: int = flag(1, "images at once, in training and in sampling", group="what", minimum=1)
    train_steps: int = flag(4, "training steps a run; the first one is not counted", group="what", minimum=2)
    sample_steps: int = flag(4, "DDIM steps an image", group="what", minimum=1)
    rounds: int = flag(2, "runs of each contender, in turns", group="what", minimum=1)
    out: str = flag("benchmarks/cpu.json", "where the numbers go", group="what")


class Run(NamedTuple):
    """One process: seconds of each step or image after the first, to that one, and in all; peak GiB."""

    each: list[float]
    start: float
    memory: float
    whole: float = 0.0


def write_random_base(folder: Path) -> Path:
    """A model of SD 1.5's size in diffusers' layout, fp16, as published; only its weights are random."""
    for part in (UNET, AUTOENCODER):
        module = part.module(part.config).half()
        save_tensors(folder / part.folder / f"{WEIGHTS}.safetensors", module.state_dict(), "about", {})
        blocks = part.blocks(len(part.config.block_out_channels))
        save_json(folder / part.folder / "config.json", dataclasses.asdict(part.config) | blocks)
    return write_inpainting(folder, folder / "unet")


def write_inpainting(base: Path, unet: Path) -> Path:
    """`base` with a nine-channel UNet: that in the folder `unet`, five more channels zero."""
    out = base / INPAINTING
    file, = unet.glob("*.safetensors")
    tensors = load_file(file)
    narrow = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = torch.cat([narrow, narrow.new_zeros(len(narrow), 5, 3, 3)], dim=1)
    save_tensors(out / file.name, tensors, "about", {})
    save_json(out / "config.json", json.loads((unet / "config.json").read_text()) | {"in_channels": 9})
    return base


def writable(base: Path, folder: Path) -> Path:
    """A base on disk as a folder of links, with a nine-channel UNet added if it has none."""
    folder.mkdir()
    for part in base.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    return folder if (folder / INPAINTING).exists() else write_inpainting(folder, base / "unet")


def timed(command: list[str], done: Callable[[], int]) -> Run:
    """Run `command`, noting when done(), its number of finished steps or batches, has grown."""
    began, ends, status = time.time(), [], None
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-c", LAUNCHER, sys.executable, *command], cwd=ROOT,
                                   stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        while status is None:
            time.sleep(0.01)
            status = process.poll()
            ends += [time.time()] * (done() - len(ends))
        log.seek(0)
        said, _, peak = log.read().rpartition("peak: ")
    if status:
        raise UserError(f"{shlex.join(command)}: failed: {said[-300:]}")
    memory = int(peak) * (1 if sys.platform == "darwin" else 1024) / 2**30
    whole = time.time() - began
    return Run([after - before for before, after in pairwise(ends)], (ends or [began + whole])[0] - began,
               memory, whole)


def steps_done(folder: Path) -> int:
    """The optimizer steps that a run has logged."""
    file = folder / "metrics.jsonl"
    return file.read_text().count('{"step"') if file.exists() else 0


def contenders(config: Config, base: str, work: Path) -> dict[str, dict[str, Callable[[int], Run]]]:
    """Row -> contender, ours first -> what runs it once, given the number of the round."""
    batch, peer = config.batch_size, "benchmarks/peer.py"
    size = ["--resolution", str(config.resolution), "--batch-size", str(batch)]
    data = ["--data", str(work / "bottle"), *size[2:], "--max-steps", str(config.train_steps)]
    training = ["--base", base, *size[:2], *data]
    sampling = ["--batch-size", str(batch), "--per-class", str(2 * batch),
                "--steps", str(config.sample_steps), "--guidance", "2"]
    trained = str(work / "cached-0" / "run")  # by the first round's first run
    ours = ["train_class.py", "--preview-every", "0", "--class-dropout", "0.1"]

    def train(name: str, *command: str, flags: list[str] = training) -> Callable[[int], Run]:
        def once(number: int) -> Run:
            out = work / f"{name}-{number}" / "run"
            return timed([*command, *flags, "--out", str(out)], lambda: steps_done(out))
        return once

    def sample(name: str, *command: str) -> Callable[[int], Run]:
        def once(number: int) -> Run:
            out = work / f"{name}-{number}"
            return timed([*command, *sampling, "--out", str(out)],
                         lambda: len(list(out.rglob("[0-9]*.png"))) // batch)
        return once

    return {
        "training step, latents encoded once": {
            "ours": train("cached", *ours), "diffusers + peft": train("peer-cached", peer, "train")},
        "training step, VAE in the loop": {
            "ours": train("loop", *ours, "--latent-variants", "0"),
            "diffusers + peft, stock": train("peer-loop", peer, "train", "--stock")},
        "training step, inpainting": {
            "ours": train("inpaint", "train_inpaint.py", "--preview-every", "0"),
            "diffusers + peft": train("peer-inpaint", peer, "train", "--strategy", "inpaint")},
        "training step, whole ControlNet": {
            "ours": train("control", "train_controlnet.py", "--class-ckpt", trained, "--base", base,
                          "--accumulate", "1", "--preview-every", "0", "--save-every", "1000", flags=data),
            "diffusers": train("peer-control", peer, "train", "--strategy", "control")},
        f"guided DDIM, {config.sample_steps} steps, decoded, a batch": {
            "ours": sample("drawn", "sample.py", "--ckpt", trained, "--base", base, "--classes", "good"),
            "diffusers + peft": sample("peer-drawn", peer, "sample", "--base", base, *size[:2])}}


def compared(row: str, runs: dict[str, list[Run]]) -> dict[str, Any]:
    """One row of the table: medians and ranges of each contender, and how much the rival needs of each."""
    result: dict[str, Any] = {"what": row}
    for name, of in runs.items():
        each = [seconds for run in of for seconds in run.each]
        result[name] = {"seconds": round(statistics.median(each), 3),
                        "range": [round(min(each), 3), round(max(each), 3)],
                        "seconds_to_first": round(statistics.median(run.start for run in of), 2),
                        "peak_gib": round(statistics.median(run.memory for run in of), 2)}
    ours, rival = (result[name] for name in runs)
    result["ratio"] = {key: round(rival[key] / ours[key], 2)
                       for key in ("seconds", "seconds_to_first", "peak_gib")}
    return result


def main() -> None:
    """Run every contender in turns, then write and print the medians."""
    config = parse(Config, __doc__, EXAMPLE)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_demo(work / "bottle", 1, 0)
        if config.base == "random":
            print("writing a base of SD 1.5's size", file=sys.stderr)
            base = str(write_random_base(work / "base"))
        else:
            base = str(writable(ROOT / "tiny" if config.base == "tiny" else Path(config.base), work / "base"))
        rows = contenders(config, base, work)
        runs: dict[str, dict[str, list[Run]]] = {row: {name: [] for name in of} for row, of in rows.items()}
        for number in range(config.rounds):
            for row, of in rows.items():
                for name, once in of.items():
                    runs[row][name].append(once(number))
                    print(f"round {number + 1} of {config.rounds}: {row}: {name}: {runs[row][name][-1]}",
                          file=sys.stderr, flush=True)
    results = [compared(row, of) for row, of in runs.items()]
    save_json(Path(config.out), {
        "command": "python bench.py " + shlex.join(sys.argv[1:]), "config": dataclasses.asdict(config),
        "date": datetime.date.today().isoformat(), "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")}, "rows": results})
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    errors.run(main)
