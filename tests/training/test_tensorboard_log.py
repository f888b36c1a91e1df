"""--tensorboard: the same numbers and pictures as metrics.jsonl and previews/, read by TensorBoard itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from bases import Outcome, Place, command, rows

import train_class
from evaluation.networks import LITE


def train(place: Place, *flags: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, "--out", "run",
                   "--resolution", 64, "--latent-variants", 1, "--preview-every", 1, "--preview-steps", 1,
                   "--features", LITE, "--judge", LITE, *flags)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_without_tensorboard_it_is_one_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert train(place, "--tensorboard").failed_with("--tensorboard: not installed; pip install tensorboard")
    assert not Path("run").exists()


def test_it_shows_what_the_run_folder_holds(place: Place) -> None:
    """Over a stop, and with a start before it was asked for."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(place, "--epochs", 1).status == 0 and not Path("run/tensorboard").exists()
    for epochs in (2, 3):
        assert train(place, "--epochs", epochs, "--tensorboard").status == 0
    noted = rows(Path("run/metrics.jsonl"))[1:]
    steps, scored = ([row for row in noted if ("validation" in row) == which] for which in (False, True))
    board = EventAccumulator("run/tensorboard")
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"loss", "lr", "grad_norm", "seconds", "skipped", *(
        f"validation/{name}" for name, value in scored[0]["validation"].items() if value is not None)}
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in steps]
    assert [event.value for event in board.Scalars("validation/dca")] == [
        pytest.approx(row["validation"]["dca"]) for row in scored] and len(scored) == 3
    assert [event.step for event in board.Images("preview")] == [1, 2, 3]
    assert train(place, "--epochs", 1, "--tensorboard", "--restart").status == 0
    board = EventAccumulator("run/tensorboard")
    board.Reload()
    assert len(board.Scalars("loss")) == rows(Path("run/metrics.jsonl"))[-1]["step"]
