"""This project beside diffusers + peft, doing the same work in turns: seconds, start-up, peak memory.

Both load the same base from disk and do the same steps at the same size, batch and precision. In each round
every contender runs as a process of its own, as a user would run it. A row is written as soon as it is
measured; the same command run again after a stop measures the missing rows.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.random_base import writable, write_random_base
from benchmarks.rows import Place, Row, table
from benchmarks.timing import ROOT, Run
from runtime import errors
from runtime.cli import flag, parse
from runtime.device import DTYPES
from runtime.errors import UserError
from runtime.files import save_json
from tiny.demo import write_demo
from training.plan import matmul_rate

EXAMPLE = """example:
  python -m benchmarks.bench                # SD 1.5's size with random weights: half an hour on two cores
  python -m benchmarks.bench --base tiny --resolution 128
"""


@dataclass
class Config:
    """The command line of benchmarks.bench."""

    base: str = flag("random", "random: SD 1.5's size, random weights; or tiny, or a folder", group="what")
    resolution: int = flag(512, "side of the images in pixels; slow rows have half of it",
                           group="what", minimum=128)
    rounds: int = flag(2, "runs of each contender, in turns", group="what", minimum=1)
    only: str = flag("", "measure only rows whose name contains this", group="what")
    restart: bool = flag(False, "replace the results in --out", group="what")
    out: str = flag("benchmarks/cpu.json", "where the results go", group="what")
    device: str = flag("cpu", "cpu or cuda", group="speed", choices=("cpu", "cuda"))


def measured(what: str, row: Row, rounds: int, device: str) -> dict[str, Any]:
    """Run the contenders in turns. One that fails is left out of later turns; its error is recorded."""
    peak = matmul_rate(torch.device(device), DTYPES[row.precision])
    runs: dict[str, list[Run]] = {name: [] for name in row.contenders}
    failures: dict[str, str] = {}
    for number in range(rounds):
        for name in [name for name in row.contenders if name not in failures]:
            try:
                runs[name].append(row.contenders[name]())
            except UserError as error:
                failures[name] = str(error)
            print(f"{what}, round {number + 1} of {rounds}: {name}: {failures.get(name) or runs[name][-1]}",
                  file=sys.stderr, flush=True)
    return {"what": what, **row._asdict(), "tflop": round(row.tflop, 3), "matmul_tflops": round(peak, 3),
            "date": datetime.date.today().isoformat(), "load": os.getloadavg()[0],
            "contenders": compared({name: of for name, of in runs.items() if name not in failures},
                                   row.tflop / peak), "failures": failures}


def compared(runs: dict[str, list[Run]], at_peak: float) -> dict[str, Any]:
    """Median and range of each contender; for each of ours, the ratios of the rivals' numbers to its own.

    at_peak: seconds of the same arithmetic as one large matrix product.
    """
    result: dict[str, Any] = {}
    for name, of in runs.items():
        each = [seconds for run in of for seconds in run.each]
        result[name] = {"seconds": round(statistics.median(each), 3),
                        "range": [round(min(each), 3), round(max(each), 3)],
                        "share_of_matmul": round(at_peak / statistics.median(each), 3),
                        "seconds_to_first": round(statistics.median(run.start for run in of), 2),
                        "peak_gib": round(statistics.median(run.memory for run in of), 2)}
    rivals = {name: needs for name, needs in result.items() if not name.startswith("ours")}
    for name in result.keys() - rivals.keys():
        result[name]["ratio"] = {
            rival: {key: round(needs[key] / result[name][key], 2)
                    for key in ("seconds", "seconds_to_first", "peak_gib")}
            for rival, needs in rivals.items()}
    return result


def about(config: Config) -> dict[str, Any]:
    """The circumstances that all rows of one file share."""
    return {"base": config.base, "resolution": config.resolution, "rounds": config.rounds,
            "device": config.device, "machine": processor(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", "diffusers", "peft")}}


def processor() -> str:
    """The processor's name, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def resumed(config: Config) -> dict[str, Any]:
    """The unfinished measurement in --out, or a new one.

    Raises UserError if --out holds anything else: it would be lost.
    """
    new, out = about(config) | {"rows": []}, Path(config.out)
    if config.restart or not out.exists():
        return new
    try:
        there = json.loads(out.read_text())
        if {**there, "rows": []} == new:
            return there
    except (ValueError, TypeError):  # no JSON, or no object
        pass
    raise UserError(f"--out {out}: holds other results than of these flags on this machine; give another "
                    "file, or --restart to replace it")


def prepare(config: Config, work: Path) -> Place:
    """Base and data in the folder `work`. Two photos, so that encoding them takes little time."""
    write_demo(work / "bottle", 1, 0)
    for part in ("image", "mask"):
        for damage in ("broken_small", "contamination"):
            shutil.rmtree(work / "bottle" / part / damage)
    if config.base == "random":
        print("writing a base of SD 1.5's size", file=sys.stderr)
        base = write_random_base(work / "base")
    else:
        base = writable(ROOT / "tiny" if config.base == "tiny" else Path(config.base), work / "base")
    return Place(str(base), str(work / "bottle"), work, config.device)


def main() -> None:
    """Measure each missing row and write it."""
    config = parse(Config, __doc__, EXAMPLE, program="-m benchmarks.bench")
    found = resumed(config)
    with tempfile.TemporaryDirectory() as folder:
        place = prepare(config, Path(folder))
        for what, make in table(place, config.resolution).items():
            if config.only in what and what not in [row["what"] for row in found["rows"]]:
                found["rows"].append(measured(what, make(), config.rounds, config.device))
                save_json(Path(config.out), found)
                print(json.dumps(found["rows"][-1], indent=1), flush=True)


if __name__ == "__main__":
    errors.run(main)
