"""Two processes, over gloo: trainers take the steps of one, sample.py leaves its files, all end together."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from bases import ROOT, Place, rows
from forked_commands import End, ForkedCommands
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from trees import spoil

from evaluation.networks import LITE
from runtime import distributed

RUN = ["--resolution", 64, "--max-steps", 5, "--batch-size", 3, "--latent-variants", 2, "--out", "run",
       "--preview-every", 1, "--preview-steps", 1, "--save-every", 1]
STORES: list[dist.TCPStore] = []  # where processes meet: torchrun keeps it, so that it outlives them
SCRIPTS = {
    "train_class": [*RUN, "--ema", 0.9, "--class-dropout", 0.2],
    "train_inpaint": [*RUN, "--accumulate", 2],
    "train_controlnet": [*RUN, "--control-rank", 4, "--accumulate", 1],
    "sample": ["--per-class", 3, "--steps", 2, "--out", "run", "--batch-size", 2],
}


@pytest.fixture(scope="module")
def one(forked: ForkedCommands, place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of single processes, by script."""
    root, done = tmp_path_factory.mktemp("one"), {}
    for script in SCRIPTS:
        done[script] = root / script
        end = forked.wait(forked.start(script, root / script, *arguments(script, place, done)))
        assert end.status == 0, end
    return done


def arguments(script: str, place: Place, one: dict[str, Path]) -> list[object]:
    others = {"sample": lambda: ["--ckpt", one["train_class"] / "run"],
              "train_controlnet": lambda: ["--data", place.data, "--class-ckpt", one["train_class"] / "run"]}
    return [*SCRIPTS[script], "--base", place.base, *others.get(script, lambda: ["--data", place.data])()]


def start(forked: ForkedCommands, script: str, folder: Path, *arguments: object, **more: str) -> list[int]:
    """Two processes for one command, as torchrun would start them; `more` in their environment."""
    STORES.append(dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    about = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(STORES[-1].port),
             "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", **more}
    return [forked.start(script, folder, *arguments, **about, RANK=str(rank), LOCAL_RANK=str(rank))
            for rank in range(2)]


def both(forked: ForkedCommands, script: str, folder: Path, *arguments: object) -> list[End]:
    return [forked.wait(pid) for pid in start(forked, script, folder, *arguments)]


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "sample"])
def test_two_processes_take_the_steps_of_one(script: str, forked: ForkedCommands, place: Place,
                                             tmp_path: Path, one: dict[str, Path]) -> None:
    """The same losses and norms but for rounding, so the same gradients, dropout included; one set of files.

    AdamW moves a weight by its rate however small its gradient, so where that is nothing but rounding single
    weights may differ; compared are the means, relative to how far the weights may have moved.
    """
    ends = both(forked, script, tmp_path / "two", *arguments(script, place, one))
    assert [end.status for end in ends] == [0, 0], ends
    assert "12 images" in ends[0].out and ends[1].out == ""
    alone, run = one[script] / "run", tmp_path / "two/run"
    assert sorted(file.name for file in run.rglob("*")) == sorted(file.name for file in alone.rglob("*"))
    steps, expected = ([row for row in rows(folder / "metrics.jsonl")[1:] if "loss" in row]
                       for folder in (run, alone))
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5]
    for key in ("loss", "grad_norm", "lr"):
        assert [row[key] for row in steps] == pytest.approx([row[key] for row in expected], rel=2e-4), key
    after, before = (load_file(folder / "adapter.safetensors") for folder in (run, alone))
    for name, tensor in before.items():
        assert (after[name] - tensor).abs().mean() <= 0.05 * 5 * steps[0]["lr"], name
    two, single = (sorted((folder.parent / "latents").rglob("*.safetensors")) for folder in (run, alone))
    assert [file.read_bytes() for file in two] == [file.read_bytes() for file in single] != []


@pytest.mark.parametrize("more", [(), ("--select", "strict", "--tries", 2)], ids=["all", "selected"])
def test_sampling_leaves_the_same_files(more: tuple[object, ...], forked: ForkedCommands, place: Place,
                                        tmp_path: Path, one: dict[str, Path]) -> None:
    given = [*arguments("sample", place, one), *more]
    alone = tmp_path / "alone" if more else one["sample"]
    if more:
        assert forked.wait(forked.start("sample", alone, *given)).status == 0
    ends = both(forked, "sample", tmp_path / "two", *given)
    assert [end.status for end in ends] == [0, 0], ends
    left, expected = ({file.relative_to(folder): file.read_bytes() for file in folder.rglob("*")
                       if file.is_file()} for folder in (tmp_path / "two", alone))
    assert left == expected and len(left) >= 4 * 3 + 3


def test_evaluation_is_one_processes(forked: ForkedCommands, place: Place, tmp_path: Path,
                                     one: dict[str, Path]) -> None:
    flags = ["--real", place.data, "--fake", one["sample"] / "run", "--out", "out", "--features", LITE,
             "--judge", LITE, "--folds", 2, "--bootstrap", 10]
    ends = both(forked, "evaluate", tmp_path / "two", *flags)
    assert [end.status for end in ends] == [0, 0], ends
    assert "report.html" in ends[0].out and ends[1].out == "" and (tmp_path / "two/out/report.html").exists()


def test_the_others_wait_for_a_long_preview(forked: ForkedCommands, place: Place, tmp_path: Path) -> None:
    """Two of 2.5 seconds each, where torch by itself would wait for one."""
    pids = start(forked, "train_class", tmp_path / "two", "--data", place.data, "--base", place.base, *RUN,
                 "--max-steps", 8, DAWDLE="2.5")
    ends = [forked.wait(pid) for pid in pids]
    assert [end.status for end in ends] == [0, 0], ends
    assert len(list((tmp_path / "two/run/previews").iterdir())) == 2


def stopped(pids: list[int], forked: ForkedCommands, limit: float = 600) -> list[End]:
    """How they end, which must be within ten minutes, not in the 30 days of a lost connection."""
    began = time.monotonic()
    ends = [forked.wait(pid) for pid in pids]
    assert time.monotonic() - began < limit
    return ends


def wait_for_steps(run: Path, count: int) -> None:
    until = time.monotonic() + 600
    while not (run / "metrics.jsonl").exists() or len(rows(run / "metrics.jsonl")) <= count:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_killed_process_ends_the_other_and_the_command_goes_on(forked: ForkedCommands, place: Place,
                                                                 tmp_path: Path) -> None:
    flags = ["--data", place.data, "--base", place.base, *RUN, "--preview-every", 0]
    pids = start(forked, "train_class", tmp_path / "two", *flags, "--max-steps", 5000)
    wait_for_steps(tmp_path / "two/run", 5)
    os.kill(pids[1], signal.SIGKILL)
    survivor, killed = stopped(pids, forked)
    assert killed.status == -9 and survivor.status == 2
    assert "another process has ended" in survivor.err.splitlines()[-1] and "Traceback" not in survivor.err
    pids = start(forked, "train_class", tmp_path / "two", *flags, "--max-steps", 5000)
    wait_for_steps(tmp_path / "two/run", 8)
    os.kill(pids[1], signal.SIGTERM)  # only one is told; both stop at the same step, and save
    ends = stopped(pids, forked)
    assert [end.status for end in ends] == [130, 130], ends
    assert ends[0].err.splitlines()[-1] == ends[1].err.splitlines()[-1] and "saved after" in ends[0].err


def test_a_process_that_gives_no_sign_of_life_ends_the_other(forked: ForkedCommands, place: Place,
                                                             tmp_path: Path) -> None:
    """Its connection stays open, as if its machine had gone."""
    pids = start(forked, "train_class", tmp_path / "two", "--data", place.data, "--base", place.base, *RUN,
                 "--preview-every", 0, "--max-steps", 5000, PATIENCE="5")
    wait_for_steps(tmp_path / "two/run", 5)
    os.kill(pids[1], signal.SIGSTOP)
    survivor, = stopped(pids[:1], forked)
    assert survivor.status == 2, survivor
    assert "no sign of life for 5 s" in survivor.err.splitlines()[-1]
    os.kill(pids[1], signal.SIGKILL)
    os.kill(pids[1], signal.SIGCONT)
    stopped(pids[1:], forked)


@pytest.mark.parametrize("size", [1, 100, 2**30])
def test_gradients_are_summed_in_buckets(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, in their own memory format; of a weight that only another process has a gradient for, too."""
    exchanged: list[int] = []
    monkeypatch.setattr(distributed, "BUCKET", size)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "add_up", lambda *there: [1.0, 2.0, 1.0, 0.0])
    monkeypatch.setattr(dist, "all_reduce", lambda flat: (exchanged.append(flat.nbytes), flat.mul_(2)))
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 3, 4, 4), (5,), (7,))]
    gradient = torch.randn(2, 3, 4, 4)
    weights[0].grad = torch.arange(3.0)
    weights[1].grad = gradient.contiguous(memory_format=torch.channels_last)
    places = [weight.grad.data_ptr() for weight in weights[:2]]
    distributed.sum_gradients(weights)
    assert [weight.grad.data_ptr() for weight in weights[:2]] == places
    assert torch.equal(weights[0].grad, 2 * torch.arange(3.0)) and torch.equal(weights[1].grad, 2 * gradient)
    assert weights[1].grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(weights[2].grad, torch.zeros(5)) and weights[3].grad is None
    assert exchanged == {1: [12, 384, 20], 100: [396, 20]}.get(size, [416])


def test_what_ends_one_is_told_by_the_other(forked: ForkedCommands, place: Place, tmp_path: Path) -> None:
    """A JPEG cut short is only noticed when it is decoded, by the process whose share it is in."""
    shutil.copytree(place.data, tmp_path / "data")
    photo = tmp_path / "data/image/good/000.png"
    with Image.open(photo) as image:
        image.save(photo.with_suffix(".jpg"))
    photo.unlink()
    spoil(photo.with_suffix(".jpg"), 0.5)
    pids = start(forked, "train_class", tmp_path / "two", "--data", tmp_path / "data", "--base", place.base,
                 *RUN, "--latent-variants", 0, "--batch-size", 12)
    ends = stopped(pids, forked)
    assert [end.status for end in ends] == [2, 2], ends
    lines = [end.err.splitlines()[-1] for end in ends]
    assert all("000.jpg: cannot be read" in line and "Traceback" not in line for line in lines), lines
    assert sum("another process has ended: process" in line for line in lines) == 1


def test_torchrun(place: Place, tmp_path: Path, one: dict[str, Path]) -> None:
    """As a user starts it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(ROOT / "sample.py"), *map(str, arguments("sample", place, one))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done
    assert (tmp_path / "run/grid.png").read_bytes() == (one["sample"] / "run/grid.png").read_bytes()


def test_a_store_that_no_longer_answers_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the machine of rank 0 has gone: calls neither return nor fail."""
    ended, over = threading.Event(), threading.Event()

    class Mute:
        def clone(self) -> Mute:
            return self

        def set(self, *_: str) -> None:
            over.wait(60)

    monkeypatch.setattr(distributed, "BEAT", 0.05)
    monkeypatch.setattr(distributed, "PATIENCE", 0.3)
    monkeypatch.setattr(distributed.os, "write", lambda *_: None)
    monkeypatch.setattr(distributed.os, "_exit", lambda status: ended.set())
    with distributed._heartbeat(Mute(), 0, 1):
        assert ended.wait(60)
        over.set()
