"""What a ControlNet of SD 1.5's size costs, whole and low-rank.

On a base of random weights, train_controlnet.py does two optimizer steps of one image each. Results go to
benchmarks/controlnet_size.json: parameters trained, bytes of the files, and the process's peak memory.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.random_base import write_random_base
from benchmarks.timing import Run, record, timed
from runtime import errors
from runtime.cli import flag, parse

RANKS = (0, 16, 32)


@dataclass
class Config:
    """The command line of benchmarks.controlnet_size."""

    resolution: int = flag(512, "side of the image in pixels", minimum=64)
    device: str = flag("cpu", "cpu or cuda", choices=("cpu", "cuda"))


def run(script: str, arguments: str) -> Run:
    """Run one of our commands to its end."""
    return timed([script, *shlex.split(arguments)], lambda: 0)


def main() -> None:
    """Train each rank in a process of its own and record the rows."""
    config, rows = parse(Config, __doc__, "", program="-m benchmarks.controlnet_size"), []
    with tempfile.TemporaryDirectory() as folder:
        base = write_random_base(Path(folder) / "base")
        run("data.py", f"demo {folder}/bottle --per-class 1")
        flags = f"--data {folder}/bottle --batch-size 1 --preview-every 0 --device {config.device} "
        run("train_class.py", flags + f"--base {base} --resolution {config.resolution} --max-steps 1 "
                                      f"--out {folder}/class")
        for rank in RANKS:
            out = Path(folder) / f"rank{rank}"
            done = run("train_controlnet.py", flags + f"--class-ckpt {folder}/class --base {base} "
                       f"--accumulate 1 --max-steps 2 --control-rank {rank} --out {out}")
            printed = re.search(r"([\d,]+) parameters", done.said)
            rows.append({"rank": rank, "peak_bytes": round(done.memory * 2**30),
                         "parameters": int(printed[1].replace(",", "")) if printed else None,
                         "checkpoint_bytes": (out / "adapter.safetensors").stat().st_size,
                         "resume_bytes": (out / "resume.safetensors").stat().st_size})
            print(json.dumps(rows[-1]), flush=True)
            for file in out.glob("*.safetensors"):
                file.unlink()
    record("benchmarks/controlnet_size.json", device=config.device, resolution=config.resolution,
           batch_size=1, rows=rows)


if __name__ == "__main__":
    errors.run(main)
