"""Commands run in forks of one process that has imported torch and the scripts: real processes, to be killed,
to work together or to have an environment of their own, for a hundredth of the time that starting one takes.
huggingface_hub is not among the imports, so each fork reads its address and cache from its environment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bases import ROOT

PROGRAM = """
import datetime, fnmatch, hashlib, importlib, json, os, resource, signal, sys, time, traceback
import torch
import torch.distributed.distributed_c10d as c10d
from PIL import Image
import evaluate, sample, train_class, train_controlnet, train_inpaint
from evaluation import networks
from runtime import distributed, errors, tensor_files
from sd.pretrained import weights
from training import loop, run_folder

# Curves and charts take seconds to draw; in place of curves a picture that shows whether it is of all rows.
run_folder.curves = lambda rows: Image.new("RGB", (len(rows), 8))
evaluate.chart = lambda *_, **__: Image.new("RGB", (8, 8))
networks.SIZES[networks.LITE] = 64  # features of small pictures, for speed

def judge(*_):
    def score(preview):
        number = int.from_bytes(hashlib.sha256(preview.picture.tobytes()).digest()[:2], "little") / 2**16
        return {"dca": number, "ceiling": 1.0, "fid": None, "kid": None}
    return score

loop.Validator = judge

def die_at(count):
    # kill -9 in front of the count-th opening for writing, renaming or deletion of a file
    left = [count]
    def hook(event, arguments):
        if event in ("os.rename", "os.remove") or event == "open" and str(arguments[1])[:1] in "wa":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)

def die_in(pattern):
    # SIGXFSZ inside safetensors' own writing of the first file of this name: no handler runs, as at kill -9
    save_file = tensor_files.save_file
    def limited(tensors, path, metadata):
        if fnmatch.fnmatch(path.name, pattern):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        save_file(tensors, path, metadata)
    tensor_files.save_file = limited

def dawdle(seconds):
    # previews take so long, and torch's own patience with other processes is a second
    save_preview = run_folder.RunFolder.save_preview
    run_folder.RunFolder.save_preview = lambda *given: (time.sleep(seconds), save_preview(*given))
    c10d.default_pg_timeout = datetime.timedelta(seconds=1)

def run(job):
    os.chdir(job["folder"])
    if job["code"]:
        os.environ.clear()
    os.environ.update(job["environment"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(job["log"] + "." + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["script.py", *job["arguments"]]
    if job["die_at"]:
        die_at(job["die_at"])
    if job["die_in"]:
        die_in(job["die_in"])
    if "PATIENCE" in job["environment"]:
        distributed.BEAT, distributed.PATIENCE = 0.2, float(job["environment"]["PATIENCE"])
    if "DAWDLE" in job["environment"]:
        dawdle(float(job["environment"]["DAWDLE"]))
    try:
        if job["code"]:
            names = {"CPU": {"device": "cpu", "dtype": torch.float32}, "errors": errors, "time": time}
            names |= vars(weights)
            errors.run(lambda: exec(job["code"], names))
        else:
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


class ForkedCommands:
    """Forks commands. Paths among the arguments are absolute, or relative to the folder."""

    def __enter__(self) -> ForkedCommands:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        said = self.process.stdout.readline()
        assert said == "ready\n", (said, self.process.poll())
        self.logs: dict[int, str] = {}
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=600)

    def _ask(self, question: dict) -> object:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, script: str, folder: Path, *arguments: object, die_at: int = 0,
              die_in: str = "", **environment: str) -> int:
        """Run a script's main in `folder`.

        die_at: kill -9 before the so many-th change to a file. die_in: die while safetensors writes the first
        file of this name, a pattern.
        """
        log = folder.parent / f"{folder.name}.{environment.get('RANK', 0)}"
        return self._start(folder, log, script=script, arguments=[str(argument) for argument in arguments],
                           environment=environment, die_at=die_at, die_in=die_in)

    def python(self, code: str, environment: dict[str, str], folder: Path) -> End:
        """Run code in `folder`, as our scripts run theirs, with this environment alone.

        It may use CPU and all names of sd.pretrained.weights.
        """
        log = folder.parent / f"{folder.name}.{len(self.logs)}"
        return self.wait(self._start(folder, log, code=code, environment=environment))

    def _start(self, folder: Path, log: Path, **job: object) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        job = {"code": "", "arguments": [], "die_at": 0, "die_in": ""} | job
        pid = self._ask({**job, "folder": str(folder), "log": str(log)})
        self.logs[pid] = str(log)
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
