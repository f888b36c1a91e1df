"""kill -9: at random moments, in front of each kind of change to a file, and after ten of twenty steps. The
same command then ends with the same bytes as one that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from bases import Place, place, rows
from nursery import Nursery, kill_after, nursery

__all__ = ["nursery", "place"]
AT_RANDOM, AT_FILES = 4, 4  # kills a command
RUN = ["--resolution", 64, "--epochs", 4, "--batch-size", 2, "--accumulate", 2, "--save-every", 1,
       "--ema", 0.9, "--preview-every", 2, "--preview-steps", 1, "--latent-variants", 2, "--out", "run",
       "--max-samples-per-damage-type", 2]
SCRIPTS = {
    "train_class": [*RUN, "--class-dropout", 0.2],
    "train_inpaint": [*RUN, "--clip", 0.1],
    "train_controlnet": [*RUN, "--control-rank", 4],
    "sample": ["--per-class", 3, "--steps", 2, "--out", "run"],
    "evaluate": ["--features", "tiny", "--judge", "tiny", "--judge-epochs", 1, "--folds", 2, "--bootstrap",
                 10, "--out", "run"],
}
TRAINERS = ("train_class", "train_inpaint", "train_controlnet")
CACHES = r"latents/.*\.tmp|run/features/.*"  # how features lie in files depends on where a run was stopped


@pytest.fixture(scope="module")
def whole(nursery: Nursery, place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed run of train_class.py, which others need."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    arguments = [*SCRIPTS["train_class"], "--data", place.data, "--base", place.base]
    end = nursery.wait(nursery.start("train_class", folder, *arguments))
    assert end.status == 0, end
    return folder


def contents(folder: Path) -> dict[str, object]:
    """What a command left, by file name; of rows all but how long steps took and the folder's own place."""
    found: dict[str, object] = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.name == "metrics.jsonl" or "cut_and_paste" in name and file.suffix == ".jsonl":
            found[name] = [{k: v for k, v in row.items() if k not in ("seconds", "photo")}
                           for row in rows(file)]
        elif file.is_file() and not re.fullmatch(CACHES, name):
            found[name] = file.read_bytes()
    return found


def arguments_of(script: str, place: Place, whole: Path) -> list[object]:
    own = {"evaluate": ["--real", place.data, "--fake", place.data],
           "sample": ["--ckpt", whole / "run", "--base", place.base],
           "train_controlnet": ["--data", place.data, "--class-ckpt", whole / "run", "--base", place.base]}
    return [*SCRIPTS[script], *own.get(script, ["--data", place.data, "--base", place.base])]


@pytest.mark.parametrize("script", TRAINERS)
def test_ten_steps_a_kill_and_ten_more(script: str, nursery: Nursery, place: Place, whole: Path,
                                       tmp_path: Path) -> None:
    """With accumulation, EMA, the cache of latents, previews and the best of them."""
    arguments = [*arguments_of(script, place, whole), "--epochs", 10, "--save-every", 2]
    assert nursery.wait(nursery.start(script, tmp_path / "once", *arguments)).status == 0
    pid, metrics = nursery.start(script, tmp_path / "twice", *arguments), tmp_path / "twice/run/metrics.jsonl"
    until = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count('"loss"') < 10:
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert nursery.wait(pid).status == -9
    assert nursery.wait(nursery.start(script, tmp_path / "twice", *arguments)).status == 0
    left, expected = contents(tmp_path / "twice"), contents(tmp_path / "once")
    assert left.keys() == expected.keys() and "run/best.safetensors" in left
    assert [name for name in left if left[name] != expected[name]] == []
    assert [row["step"] for row in left["run/metrics.jsonl"] if "loss" in row] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_and_run_again(script: str, nursery: Nursery, place: Place, whole: Path,
                              tmp_path: Path) -> None:
    arguments = arguments_of(script, place, whole)
    undisturbed = nursery.wait(nursery.start(script, tmp_path / "undisturbed", *arguments))
    assert undisturbed.status == 0, undisturbed
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) > 5
    draw, kills, lives = random.Random(script), 0, 0
    while kills < AT_RANDOM + AT_FILES:
        folder, lives = tmp_path / f"life {lives}", lives + 1
        while True:
            at_files = AT_RANDOM <= kills < AT_RANDOM + AT_FILES
            die_at = draw.randint(1, 30) if at_files else 0
            pid = nursery.start(script, folder, *arguments, die_at=die_at)
            if kills < AT_RANDOM:
                kill_after(pid, draw.uniform(0.05, undisturbed.seconds))
            end = nursery.wait(pid)
            if end.status == 0:
                break
            assert end.status == -9, end
            kills += 1
        left = contents(folder)
        assert left.keys() == expected.keys()
        assert [name for name in left if left[name] != expected[name]] == []
    print(json.dumps({"script": script, "kills": kills, "lives": lives}))
