"""What a ControlNet of SD 1.5's size costs, whole and low-rank: `python benchmarks/controlnet_size.py`.

On a base of random weights, two optimizer steps of one 512 px image each, by train_controlnet.py as a person
runs it. Results go to benchmarks/controlnet_size.json: parameters trained, bytes of the files and peak memory
of the process.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import published  # noqa: E402

RANKS = (0, 16, 32)
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[1:])
print("peak kB:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def run(script: str, arguments: str) -> tuple[str, int]:
    """Run one of our commands; what it printed, and its peak memory in bytes (on Linux).

    A small process stands in between, for the peak of a child counts that of the process that started it.
    """
    command = [sys.executable, "-c", LAUNCHER, sys.executable, str(ROOT / script), *arguments.split()]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout
    return out, int(out.split("peak kB:")[1]) * 1024


def main() -> None:
    """The command: a process an arm, then the table."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = published.write_model(Path(folder) / "base", unet=published.UNET_JSON, vae=published.VAE_JSON,
                                     files=(published.FP16,))
        run("data.py", f"demo {folder}/bottle --per-class 1")
        flags = f"--data {folder}/bottle --batch-size 1 --preview-every 0 --device {arguments.device} "
        run("train_class.py", flags + f"--base {base} --resolution {arguments.resolution} --max-steps 1 "
                                      f"--out {folder}/class")
        for rank in RANKS:
            out = Path(folder) / f"rank{rank}"
            printed, peak = run("train_controlnet.py", flags + f"--class-ckpt {folder}/class --base {base} "
                                f"--accumulate 1 --max-steps 2 --control-rank {rank} --out {out}")
            rows.append({"rank": rank, "peak_bytes": peak,
                         "parameters": int(re.search(r"([\d,]+) parameters", printed)[1].replace(",", "")),
                         "checkpoint_bytes": (out / "adapter.safetensors").stat().st_size,
                         "resume_bytes": (out / "resume.safetensors").stat().st_size})
            print(rows[-1])
            for file in out.glob("*.safetensors"):
                file.unlink()
    result = {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
              "cores": os.cpu_count(), "torch": torch.__version__,
              "device": arguments.device, "resolution": arguments.resolution, "batch_size": 1, "rows": rows}
    (ROOT / "benchmarks" / "controlnet_size.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
