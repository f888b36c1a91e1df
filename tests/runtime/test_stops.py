"""What stops a run, and what is left: losses that are not finite, signals, disks, folders, other runs."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from bases import ROOT, Outcome, Place, command, rows
from forked_commands import ForkedCommands
from PIL import Image
from safetensors.torch import load_file

import data
import evaluate
import lora
import sample
import train_class
from evaluation.networks import LITE
from runtime.files import save_text
from runtime.locks import locked, new_folder
from training import loop, setup

FLAGS = ["--resolution", 64, "--preview-every", 0, "--no-validate", "--save-every", 1, "--latent-variants", 1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(place: Place, *arguments: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, "--out", "run", *FLAGS,
                   *arguments)


def failing(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the loss of these steps, counted from 1, not a number."""
    computed, calls = loop.step_losses, []

    def losses(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return computed(*arguments) * (float("nan") if len(calls) in steps else 1)

    monkeypatch.setattr(loop, "step_losses", losses)


def test_a_step_without_a_finite_loss_is_skipped_and_counted(place: Place,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 3 ends an epoch: what is due then is saved after the next good one."""
    failing(monkeypatch, 2, 3)
    outcome = train(place, "--epochs", 2)
    assert outcome.status == 0 and "step 4 of 6: " in outcome.err and "2 steps skipped" in outcome.err
    steps = rows(Path("run/metrics.jsonl"))[1:]
    assert [row["skipped"] for row in steps] == [0, 1, 2, 2, 2, 2]
    assert [row["loss"] is None for row in steps] == [False, True, True, False, False, False]
    assert "NaN" not in Path("run/metrics.jsonl").read_text()
    assert all(tensor.isfinite().all() for tensor in load_file("run/adapter.safetensors").values())
    assert train(place, "--epochs", 3).status == 0
    assert rows(Path("run/metrics.jsonl"))[-1]["skipped"] == 2  # also after going on


def test_twenty_in_a_row_end_the_run_and_keep_what_was_saved(place: Place,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, *range(5, 100))
    outcome = train(place, "--epochs", 100)
    assert outcome.failed_with("step 24: the loss is nan", "20 steps in a row", "--lr", "step 3 is kept")
    assert load_file("run/adapter.safetensors") and len(rows(Path("run/metrics.jsonl"))) == 25




def test_a_last_step_that_is_not_finite_is_no_success(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, 4)
    assert train(place, "--max-steps", 4).failed_with("step 4: the loss is nan", "step 3 is kept")


def test_a_second_ctrl_c_leaves_at_once(place: Place, forked: ForkedCommands, tmp_path: Path) -> None:
    pid = forked.start("train_class", tmp_path / "work", "--data", place.data, "--base", place.base, *FLAGS,
                        "--resolution", 320, "--batch-size", 12, "--out", "run")
    metrics, said = tmp_path / "work/run/metrics.jsonl", Path(f"{forked.logs[pid]}.err")
    until = time.monotonic() + 600
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(pid, signal.SIGINT)
    while "once more to leave at once" not in said.read_text():
        assert time.monotonic() < until
    os.kill(pid, signal.SIGINT)
    assert forked.wait(pid).status == -signal.SIGINT


def locker(out: str, forked: ForkedCommands, script: str, *arguments: object) -> int:
    """A command at work here in the folder `out`, which has got as far as to lock it."""
    pid, lock = forked.start(script, Path.cwd(), *arguments, "--out", out), Path(out, ".lock")
    until = time.monotonic() + 600
    while not lock.exists() or not lock.read_text():
        assert time.monotonic() < until
        time.sleep(0.01)
    return pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_command_cleanly(number: int, place: Place, forked: ForkedCommands) -> None:
    """Also training before its first step."""
    assert train(place, "--max-steps", 1).status == 0
    real = ["--real", place.data, "--fake", place.data, "--features", LITE, "--judge", LITE]
    for script, arguments in (("train_class", ["--data", place.data, "--base", place.base, *FLAGS]),
                              ("sample", ["--ckpt", "run", "--base", place.base, "--steps", 500]),
                              ("evaluate", real)):
        pid = locker("out", forked, script, *arguments)
        os.kill(pid, number)
        end = forked.wait(pid)
        assert end.status == 130 and "Traceback" not in end.err, (script, end)
        assert end.err.splitlines()[-1].startswith(("interrupted", "saved after step"))
        assert not list(Path().glob("out/**/.*"))
        shutil.rmtree("out", ignore_errors=True)


def save_in_a_locked_folder(out: Path, count: Callable[..., None]) -> None:
    with locked(out):
        sys.setprofile(count)
        save_text(out / "file", "new")


def fill_a_new_folder(out: Path, count: Callable[..., None]) -> None:
    with new_folder(out) as private:
        sys.setprofile(count)
        (private / "file").write_text("new")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where a generator is closed
@pytest.mark.parametrize("work", [save_in_a_locked_folder, fill_a_new_folder])
def test_an_interrupt_at_any_moment_leaves_no_hidden_file(
        work: Callable[[Path, Callable[..., None]], None]) -> None:
    """Python raises KeyboardInterrupt where a function is called or returns, in cleaning up too."""
    for moment in itertools.count(1):
        left, out = [moment], Path(f"out{moment}")

        def count(_: object, __: str, function: object, left: list[int] = left) -> None:
            # not after os.close: rmtree would close that number again, which may be another thread's by then
            left[0] -= function not in (sys.setprofile, os.close)
            if left[0] == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

        try:
            work(out, count)
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert not list(out.glob("**/.*")), moment
        if left[0] > 0:  # it ended before its so many-th call
            break
    assert (out / "file").read_text() == "new" and moment > 50


def test_an_interrupt_that_a_library_takes_for_an_error() -> None:
    """As safetensors may, where it calls Python amid its own code."""
    def swallowed() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape of object") from None

    assert command(swallowed) == Outcome(130, "", "interrupted\n")


def test_files_have_the_permissions_of_others(place: Place) -> None:
    """safetensors' own are for their owner alone."""
    before = os.umask(0o027)
    try:
        assert train(place, "--max-steps", 1).status == 0
        assert {file.stat().st_mode & 0o777 for file in Path("run").iterdir() if file.is_file()} == {0o640}
    finally:
        os.umask(before)


def test_closed_streams(place: Place) -> None:
    """As cron and init systems may start a command."""
    line = 'exec "$0" "$1/data.py" doctor "$2" --out sheet.png >&- 2>&-'
    done = subprocess.run(["sh", "-c", line, sys.executable, ROOT, place.data], timeout=600)
    assert done.returncode == 0 and Path("sheet.png").exists()


def test_the_second_run_in_a_folder_is_refused(place: Place, forked: ForkedCommands) -> None:
    assert train(place, "--max-steps", 1).status == 0
    flags = ["--data", place.data, "--base", place.base, *FLAGS]
    draw = ["--ckpt", "run", "--base", place.base, "--steps", 500]
    for script, main, arguments, out in (("train_class", train_class.main, flags, "run"),
                                         ("sample", sample.main, draw, "drawn")):
        pid = locker(out, forked, script, *arguments)
        assert command(main, *arguments, "--out", out).failed_with(f"process {pid} on", "is writing here",
                                                                   "another --out")
        os.kill(pid, signal.SIGKILL)
        forked.wait(pid)
    assert train(place, "--max-steps", 2).status == 0 and not Path("run/.lock").exists()


@pytest.mark.parametrize("name", ["resume.safetensors", "adapter.safetensors"])
def test_a_single_wrong_bit_is_noticed(name: str, place: Place) -> None:
    """In the middle of a tensor, where safetensors itself sees nothing. The checkpoint for use is mended."""
    assert train(place, "--max-steps", 1).status == 0
    file = Path("run", name)
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    if name == "adapter.safetensors":
        assert command(sample.main, "--ckpt", "run").failed_with(name, "checksum")
        assert train(place, "--max-steps", 1).status == 0 and file.read_bytes() != content
    else:
        assert train(place, "--max-steps", 2).failed_with(name, "checksum")


@pytest.mark.parametrize("kept", [True, False])
def test_data_that_vanish(kept: bool, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """While training, and before it goes on: one line, and the checkpoint is as it was."""
    shutil.copytree(place.data, "data")
    again = ("--data", "data", "--latent-variants", 0)
    assert train(place, *again, "--epochs", 1).status == 0
    before = Path("run/adapter.safetensors").read_bytes()
    if kept:
        monkeypatch.setattr("dataset.decoded.CACHE_BYTES", 0)
        monkeypatch.setattr(setup, "choose_checkpointing", lambda *_, **__: shutil.rmtree("data"))
        assert train(place, *again, "--epochs", 2).failed_with(f"{Path('data').resolve()}/", "No such file")
    else:
        shutil.rmtree("data")
        assert train(place, *again, "--epochs", 2).failed_with("data: no such folder")
    assert Path("run/adapter.safetensors").read_bytes() == before


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "none", disk],
                                                   capture_output=True).returncode:
        pytest.skip("only root can mount a disk")
    yield disk
    gc.collect()  # of a command that failed, the traceback keeps files of the disk open
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_folder_that_cannot_be_written(place: Place, disk: Path) -> None:
    assert train(place, "--epochs", 1, "--out", disk / "run").status == 0
    before = (disk / "run/adapter.safetensors").read_bytes()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for out in (disk / "run", disk / "new"):
        assert train(place, "--epochs", 2, "--out", out).failed_with(str(disk), "Read-only file system")
    assert command(sample.main, "--ckpt", disk / "run", "--out", disk / "drawn").failed_with("Read-only")
    assert (disk / "run/adapter.safetensors").read_bytes() == before


def test_every_command_on_a_full_disk(place: Place, disk: Path) -> None:
    """One line that names the file; what is there is whole."""
    assert train(place, "--max-steps", 1).status == 0
    subprocess.run(["mount", "-o", "remount,size=40k", disk], check=True)
    networks = ["--features", LITE, "--judge", LITE, "--folds", 2, "--bootstrap", 10]
    for main, *arguments in (
            (data.main, "demo", disk / "out", "--per-class", 9), (lora.main, "convert", "run", disk / "out",
                                                                  "--to", "kohya"),
            (sample.main, "--ckpt", "run", "--steps", 1, "--out", disk / "out"),
            (evaluate.main, "--real", place.data, "--fake", place.data, *networks, "--out", disk / "out")):
        outcome = command(main, *arguments)
        assert outcome.failed_with(f"{disk}/out/", "No space left"), outcome
        for file in disk.rglob("*.png"):
            Image.open(file).load()
        assert not list(disk.rglob(".*"))
        shutil.rmtree(disk / "out", ignore_errors=True)
