"""A command timed from outside, as who waits for it sees it: when it has done what, and its peak memory."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# A small process in between, for the peak of a child counts that of the process that started it.
LAUNCHER = """
import resource, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: child.kill())
status = child.wait()
print("peak:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status != 0)
"""


class Run(NamedTuple):
    """One process: seconds of each step or batch after the first, to that one, and in all; peak GiB."""

    each: list[float]
    start: float
    memory: float
    whole: float = 0.0


def timed(command: list[str], done: Callable[[], int], enough: int = sys.maxsize, device: str = "cpu") -> Run:
    """Run `command`, noting when done(), its number of finished steps or batches, has grown.

    It is killed once it has done `enough`. Memory: on a CPU the process's, else what all there is on the GPU
    takes more than before. Raises UserError where it fails.
    """
    began, ends, status, stopped = time.time(), [], None, False
    before = _taken(device)
    most = before
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-c", LAUNCHER, sys.executable, *command], cwd=ROOT,
                                   stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        while status is None:
            time.sleep(0.01)
            status = process.poll()
            ends += [time.time()] * (done() - len(ends))
            most = max(most, _taken(device))
            if len(ends) >= enough and not stopped and status is None:
                stopped = True
                process.terminate()
        log.seek(0)
        said, _, peak = log.read().rpartition("peak: ")
    if status and not stopped:
        raise UserError(f"{shlex.join(command)}: failed: {said[-300:]}")
    memory = most - before if device == "cuda" else int(peak) * (1 if sys.platform == "darwin" else 1024)
    whole = time.time() - began
    return Run([after - before for before, after in pairwise(ends)], (ends or [began + whole])[0] - began,
               memory / 2**30, whole)


def _taken(device: str) -> int:
    """Bytes that are in use on the GPU; 0 for a CPU."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def steps_done(folder: Path) -> int:
    """The optimizer steps that a run has logged."""
    file = folder / "metrics.jsonl"
    return file.read_text().count('{"step"') if file.exists() else 0
