"""Commands run as a user runs them: their time, progress and peak memory; and what a result file records."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

from runtime.errors import UserError
from runtime.files import save_json

ROOT = Path(__file__).resolve().parent.parent
# A small process in between: a child's peak memory includes that of the process that forked it.
LAUNCHER = """
import resource, signal, subprocess, sys
child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: child.kill())
status = child.wait()
print("peak:", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status != 0)
"""


class Run(NamedTuple):
    """One process. each: seconds of each step or batch after the first; start: seconds to the first."""

    each: list[float]
    start: float
    memory: float  # peak, GiB
    whole: float = 0.0  # seconds
    said: str = ""  # stdout and stderr


def timed(command: list[str], done: Callable[[], int], enough: int = sys.maxsize, device: str = "cpu") -> Run:
    """Run one of our commands and note when done(), its number of finished steps or batches, grows.

    It is killed after `enough`. Memory: on a CPU the process's, on a GPU the growth of all that is allocated
    there. Raises UserError if the command fails.
    """
    began, status, stopped = time.time(), None, False
    ends: list[float] = []
    before = _taken(device)
    most = before
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, "-c", LAUNCHER, sys.executable, *command], cwd=ROOT,
                                   stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        try:
            while status is None:
                time.sleep(0.01)
                status = process.poll()
                ends += [time.time()] * (done() - len(ends))
                most = max(most, _taken(device))
                if len(ends) >= enough and not stopped and status is None:
                    stopped = True
                    process.terminate()
        finally:  # also after Ctrl-C or an error of done(): nothing goes on writing
            process.terminate()
            process.wait()
        log.seek(0)
        said, _, peak = log.read().rpartition("peak: ")
    if status and not stopped:
        raise UserError(f"{shlex.join(command)}: failed: {said[-300:]}")
    memory = most - before if device == "cuda" else int(peak) * (1 if sys.platform == "darwin" else 1024)
    whole = time.time() - began
    return Run([after - before for before, after in pairwise(ends)], (ends or [began + whole])[0] - began,
               memory / 2**30, whole, said)


def _taken(device: str) -> int:
    """Bytes in use on the GPU; 0 for a CPU."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


def steps_done(folder: Path) -> int:
    """The number of optimizer steps that a run has logged."""
    file = folder / "metrics.jsonl"
    return file.read_text().count('{"step"') if file.exists() else 0


def command(script: str, *arguments: object) -> float:
    """Run one of our commands with its output shown; return its seconds. Raises CalledProcessError."""
    began = time.time()
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True, cwd=ROOT)
    return time.time() - began


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `folder` where the block ends: a killed command leaves none half
    full."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    yield part
    part.rename(folder)


def record(file: str, **result: Any) -> None:
    """Write a result file, by its path from the root: when and on which machine, and the result."""
    save_json(ROOT / file,
              {"date": datetime.date.today().isoformat(), "machine": platform.machine(),
               "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0],
               "torch": torch.__version__, **result})
