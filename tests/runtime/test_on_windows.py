"""The commands under Windows' rules for files, and with the processes of Windows and macOS."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from bases import Place, command
from safetensors.torch import load_file
from windows_rules import unportable, windows_rules

import data
import evaluate
import lora
import sample
import train_class
import train_controlnet
import train_inpaint
from evaluation import networks
from runtime.errors import UserError
from runtime.locks import locked

TRAIN = ["--resolution", 64, "--preview-every", 1, "--preview-steps", 1, "--latent-variants", 1,
         "--no-validate", "--save-every", 1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def wrong_under_windows_rules(*calls: tuple) -> list[str]:
    """What goes wrong with these commands: they fail or miss a lock; hidden files, and names not possible."""
    with windows_rules():
        outcomes = [command(main, *flags) for main, *flags in calls]
    return [*(outcome.err for outcome in outcomes if outcome.status or "cannot be locked" in outcome.err),
            *unportable(Path(".")), *map(str, Path(".").rglob(".*"))]


def test_the_commands_of_readme(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each twice where it resumes: then it replaces files that it has read."""
    monkeypatch.setitem(networks.SIZES, networks.LITE, 64)
    lite = ["--features", networks.LITE, "--judge", networks.LITE, "--folds", 2, "--bootstrap", 10]
    train = (train_class.main, "--data", place.data, "--base", place.base, *TRAIN)
    draw = (sample.main, "--ckpt", "runs/bottle-class", "--steps", 1)
    rate = (evaluate.main, "--real", place.data, "--fake", "generated", *lite)
    wrong = wrong_under_windows_rules(
        (data.main, "doctor", place.data, "--resolution", 64),
        (*train, "--max-steps", 1), (*train, "--max-steps", 2),
        (*draw, "--per-class", 1), (*draw, "--per-class", 2), rate, rate,
        (lora.main, "convert", "runs/bottle-class", "out", "--to", "kohya"))
    assert wrong == []


def test_the_other_strategies(place: Place) -> None:
    inpaint = (train_inpaint.main, "--data", place.data, "--base", place.base, *TRAIN)
    control = (train_controlnet.main, "--data", place.data, "--class-ckpt", "runs/bottle-class",
               *TRAIN[2:], "--accumulate", 1)
    wrong = wrong_under_windows_rules(
        (train_class.main, "--data", place.data, "--base", place.base, *TRAIN, "--max-steps", 1),
        *((*train, "--max-steps", steps) for train in (inpaint, control) for steps in (1, 2)),
        (sample.main, "--ckpt", "runs/bottle-inpaint", "--images", place.data / "image/good",
         "--out", "painted", "--steps", 1, "--per-class", 1, "--layout", "coco"),
        (sample.main, "--ckpt", "runs/bottle-control", "--out", "drawn", "--steps", 1, "--per-class", 1))
    assert wrong == []


def test_an_open_file_is_not_replaced_here(tmp_path: Path) -> None:
    with windows_rules(), open("a", "w"), pytest.raises(PermissionError, match="being used"):
        Path("a").unlink()
    os.unlink("a")


def test_the_second_is_refused_and_takes_nothing_away() -> None:
    with windows_rules():
        with locked(Path("run")):
            with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing here"), \
                    locked(Path("run")):
                pass
            assert Path("run/.lock").is_file()
        assert not Path("run").exists()


def test_workers_that_do_not_fork(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS start each worker anew and hand it the data."""
    train = (train_class.main, "--data", place.data, "--base", place.base, *TRAIN, "--max-steps", 2,
             "--latent-variants", 0)
    assert command(*train, "--out", "here").status == 0
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context",
                        multiprocessing.get_context("spawn"))
    outcome = command(*train, "--out", "spawned", "--workers", 1)
    assert outcome.status == 0, outcome
    here, spawned = (load_file(f"{out}/adapter.safetensors") for out in ("here", "spawned"))
    assert all(torch.equal(here[name], spawned[name]) for name in here | spawned)
