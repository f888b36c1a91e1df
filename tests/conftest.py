"""What all tests share. They do not depend on chance: random numbers and hypothesis' examples are the same in
any order and subset. They leave the user's home alone. Trained checkpoints are made once a process.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Place, command, write_base
from forked_commands import ForkedCommands
from hypothesis import HealthCheck, settings
from PIL import Image
from runs import arguments_of, train_stage_a
from trees import save

import evaluate
import train_inpaint
from evaluation import networks
from runtime import trusted_paths
from tiny.bottles import draw_bottle
from tiny.demo import write_demo
from training import run_folder

# derandomize: failures are found by changing the tests, not by repeating them. A busy machine is no failure.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands remember paths in a folder of this session, not in the user's home.

    Tests run in folders beside a base, not above it, so all of pytest's folder counts as chosen. Curves and
    charts are slow to draw; those of few tests are real. Features are of small pictures, for speed.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setattr(trusted_paths, "TRUSTED", (*trusted_paths.TRUSTED, tmp_path_factory.getbasetemp()))
        patch.setitem(networks.SIZES, networks.LITE, 64)
        patch.setattr(run_folder, "curves", lambda rows: Image.new("RGB", (8, 8)))
        patch.setattr(evaluate, "chart", lambda *_, **__: Image.new("RGB", (8, 8)))
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A small base, and demo photos: 3 a class."""
    root = tmp_path_factory.mktemp("place")
    write_demo(root / "bottle", 3, 0, size=64)
    return Place(write_base(root / "base"), root / "bottle")


@pytest.fixture(scope="session")
def forked() -> Iterator[ForkedCommands]:
    with ForkedCommands() as forked:
        yield forked


@pytest.fixture(scope="session")
def stage_a(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class checkpoint whose LoRA does something."""
    return train_stage_a(place, tmp_path_factory.mktemp("a") / "run", "--class-dropout", 0.3,
                         "--tokens-per-class", 2)


@pytest.fixture(scope="session")
def inpaint_run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the inpainting strategy, on a base with an inpainting UNet, with a null class."""
    root = tmp_path_factory.mktemp("inpaint")
    outcome = command(train_inpaint.main, "--data", place.data, "--base",
                      write_base(root / "base", inpainting=True), "--resolution", 64, "--preview-every", 0,
                      "--max-steps", 3, "--lr", 0.02, "--class-dropout", 0.2, "--tokens-per-class", 2,
                      "--latent-variants", 1, "--out", root / "run")
    assert outcome.status == 0, outcome
    return root / "run"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Undamaged photos: a square one, one that is not and not of multiples of 8, and a grey one."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "photos/a.png", draw_bottle("good", 50, 128)[0])
    tall = np.pad(draw_bottle("good", 51, 101)[0], ((7, 20), (0, 0), (0, 0)), "edge")
    save(tmp_path / "photos/b.jpg", tall)
    save(tmp_path / "photos/c.png", draw_bottle("good", 52, 96)[0][..., 1])
    return tmp_path / "photos"


@pytest.fixture(scope="session")
def undisturbed(forked: ForkedCommands, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of train_class.py that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "work"
    end = forked.wait(forked.start("train_class", folder, *arguments_of("train_class", place, Path())))
    assert end.status == 0, end
    return folder
