"""The first 45 minutes on a GPU: does everything run there, is it right, and how fast is it?

Each part runs in a process of its own, within its own time, so that none can end the others. Its result, or
why there is none, goes into the result file at once; the same command goes on with the parts that are
missing there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import processor
from benchmarks.gpu_parts import PARTS
from benchmarks.random_base import writable, write_random_base
from benchmarks.timing import ROOT, record, whole
from runtime import errors
from runtime.cli import flag, parse
from runtime.errors import UserError
from tiny.demo import write_demo

EXAMPLE = """example:
  python -m benchmarks.gpu_check
  python -m benchmarks.gpu_check --device cpu --base tiny --resolution 64 --parts card attention dropout
"""


@dataclass
class Config:
    """The command line of benchmarks.gpu_check."""

    device: str = flag("cuda", "cuda, or cpu for the parts that have a meaning there",
                       choices=("cuda", "cpu"))
    base: str = flag("random", "random: SD 1.5's size, random weights; or tiny, or a folder")
    resolution: int = flag(512, "side of the images in pixels", minimum=64)
    parts: list[str] = flag(list(PARTS), "which to run", choices=tuple(PARTS))
    share: float = flag(1.0, "share of the seconds that each part may take", above=0)
    work: str = flag("/tmp/gpu_check", "folder for base, data and runs; what is there is used again")
    out: str = flag("benchmarks/gpu_check.json", "where the results go")


def prepare(config: Config) -> Path:
    """A folder with this base, and data of this size: what is in the work folder is used again."""
    work = Path(config.work) / f"{Path(config.base).name}-{config.resolution}"
    if not (work / "bottle").exists():
        with whole(work / "bottle") as folder:
            write_demo(folder, 2, 0, size=2 * config.resolution)
    if not (work / "base").exists():
        print(f"base: {config.base}", file=sys.stderr)
        with whole(work / "base") as folder:
            if config.base == "random":
                write_random_base(folder)
            else:
                writable(ROOT / "tiny" if config.base == "tiny" else Path(config.base).resolve(), folder)
    return work


def run_part(config: Config, work: Path, name: str) -> dict[str, Any]:
    """The result of a part as it prints it, or why there is none; and its seconds."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, str(work.resolve()), config.device,
               str(config.resolution)]
    began, limit = time.time(), PARTS[name].minutes * 60 * config.share
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=limit)
            found = ({"failed": (err.strip().splitlines() or ["no message"])[-1][-500:]} if process.returncode
                     else {"result": json.loads(out.strip().splitlines()[-1])})
        except subprocess.TimeoutExpired:
            found = {"failed": f"not done after {limit:.0f} s"}
        finally:  # with the commands that it started, which would keep the card
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return {**found, "seconds": round(time.time() - began, 1)}


def shown(name: str, row: dict[str, Any]) -> str:
    """A part as a few lines of the table at the end."""
    head = f"{name:10} {row['seconds']:7.1f} s  {PARTS[name].title}"
    if "failed" in row:
        return f"{head}\n    FAILED: {row['failed']}"
    return "\n".join([head, *(f"    {key}: {value}" for key, value in row["result"].items())])


def main() -> None:
    """Run the parts that are missing in the result file, and print them all."""
    config = parse(Config, __doc__, EXAMPLE, program="-m benchmarks.gpu_check")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no GPU here; --device cpu runs what has a meaning there")
    card = torch.cuda.get_device_name() if config.device == "cuda" else processor()
    here: dict[str, Any] = {"device": config.device, "card": card, "base": config.base,
                            "resolution": config.resolution}
    out = ROOT / config.out
    try:
        before = json.loads(out.read_text()) if out.exists() else here
        same = {key: before[key] for key in here} == here
    except (ValueError, KeyError, TypeError):  # no JSON, or not of this command
        same = False
    if not same:
        raise UserError(f"--out {config.out}: holds other results than of these flags on this device; give "
                        "another file")
    work = prepare(config)
    rows: dict[str, Any] = before.get("parts", {})
    for name in config.parts:
        if "result" not in rows.get(name, {}) and (config.device == "cuda" or PARTS[name].on_cpu):
            print(f"{name}: {PARTS[name].title}, {PARTS[name].minutes} minutes at most", file=sys.stderr)
            rows[name] = run_part(config, work, name)
            record(config.out, **here, cuda=torch.version.cuda, parts=rows)
    for name in PARTS:
        if name in rows:
            print(shown(name, rows[name]))


if __name__ == "__main__":
    errors.run(main)
