"""Commands run in forks of one process that has imported everything: real processes, to be killed or to work
together, each for a hundredth of the time that starting Python and torch takes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import datetime, hashlib, importlib, json, os, sys, time, traceback
import torch
import torch.distributed.distributed_c10d as c10d
from PIL import Image
import errors, evaluate, sample, train_class, train_controlnet, train_inpaint
import run_folder

# Curves take a second to draw; in their place a picture that shows whether it is of all rows.
run_folder.curves = lambda rows: Image.new("RGB", (len(rows), 8))

def judge(*_):
    def score(preview):
        number = int.from_bytes(hashlib.sha256(preview.picture.tobytes()).digest()[:2], "little") / 2**16
        return {"dca": number, "ceiling": 1.0, "fid": None, "kid": None}
    return lambda: score

for module in (train_class, train_controlnet, train_inpaint):
    module.validation = judge

def die_at(count):
    # kill -9 in front of the count-th opening for writing, renaming or deletion of a file
    left = [count]
    def hook(event, arguments):
        if event in ("os.rename", "os.remove") or event == "open" and str(arguments[1])[:1] in "wa":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)

def dawdle(seconds):
    # previews take so long, and torch's own patience with other processes is a second
    save_preview = run_folder.RunFolder.save_preview
    run_folder.RunFolder.save_preview = lambda *given: (time.sleep(seconds), save_preview(*given))
    c10d.default_pg_timeout = datetime.timedelta(seconds=1)

def run(job):
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job["log"] + "." + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["script.py", *job["arguments"]]
    if job["die_at"]:
        die_at(job["die_at"])
    if "DAWDLE" in job["environment"]:
        dawdle(float(job["environment"]["DAWDLE"]))
    try:
        errors.run(importlib.import_module(job["script"]).main)
        return 0
    except SystemExit as stop:
        return stop.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if "wait" in job:
        _, status, usage = os.wait4(job["wait"], 0)
        answer = [os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime]
    else:
        answer = os.fork()
        if answer == 0:
            status = run(job)
            sys.stdout.flush()
            os._exit(status)
    print(json.dumps(answer), flush=True)
"""


class End(NamedTuple):
    """How a process ended: exit status, or minus the signal; the CPU time it took; what it wrote."""

    status: int
    seconds: float
    out: str
    err: str


class Nursery:
    """Forks commands. Paths among the arguments are absolute, or relative to the folder."""

    def __enter__(self) -> Nursery:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == "ready\n"
        self.logs: dict[int, str] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)

    def _ask(self, question: dict) -> object:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, script: str, folder: Path, *arguments: object, die_at: int = 0,
              **environment: str) -> int:
        """Run a script's main in `folder`, with a kill -9 in front of the die_at-th change to a file."""
        folder.mkdir(parents=True, exist_ok=True)
        log = str(folder.parent / f"{folder.name}.{environment.get('RANK', 0)}")
        pid = self._ask({"script": script, "folder": str(folder), "arguments": [str(a) for a in arguments],
                         "log": log, "environment": environment, "die_at": die_at})
        self.logs[pid] = log
        return pid

    def wait(self, pid: int) -> End:
        status, seconds = self._ask({"wait": pid})
        said = [Path(f"{self.logs[pid]}.{name}").read_text() for name in ("out", "err")]
        return End(status, seconds, *said)


def kill_after(pid: int, seconds: float) -> None:
    """kill -9 a child once it has had so much CPU time, or let it end."""
    while True:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return
        if (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.002)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery
