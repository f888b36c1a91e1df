"""kill -9: at random moments, in front of each kind of change to a file, and after ten of twenty steps. The
same command then ends with the same bytes as one that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from bases import Place
from forked_commands import ForkedCommands, kill_after
from runs import KILLED_SCRIPTS, arguments_of, contents

AT_RANDOM, AT_FILES = 3, 3  # kills a command
TRAINERS = ("train_class", "train_inpaint", "train_controlnet")
@pytest.mark.parametrize("script", TRAINERS)
def test_ten_steps_a_kill_and_ten_more(script: str, forked: ForkedCommands, place: Place, undisturbed: Path,
                                       tmp_path: Path) -> None:
    """With accumulation, EMA, the cache of latents, previews and the best of them."""
    arguments = [*arguments_of(script, place, undisturbed), "--epochs", 10, "--save-every", 2]
    assert forked.wait(forked.start(script, tmp_path / "once", *arguments)).status == 0
    pid, metrics = forked.start(script, tmp_path / "twice", *arguments), tmp_path / "twice/run/metrics.jsonl"
    until = time.monotonic() + 600
    while not metrics.exists() or metrics.read_text().count('"loss"') < 10:
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    assert forked.wait(pid).status == -9
    assert forked.wait(forked.start(script, tmp_path / "twice", *arguments)).status == 0
    left, expected = contents(tmp_path / "twice"), contents(tmp_path / "once")
    assert left.keys() == expected.keys() and "run/best.safetensors" in left
    assert [name for name in left if left[name] != expected[name]] == []
    assert [row["step"] for row in left["run/metrics.jsonl"] if "loss" in row] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("script", KILLED_SCRIPTS)
def test_killed_and_run_again(script: str, forked: ForkedCommands, place: Place, undisturbed: Path,
                              tmp_path: Path) -> None:
    arguments = arguments_of(script, place, undisturbed)
    undisturbed = forked.wait(forked.start(script, tmp_path / "undisturbed", *arguments))
    assert undisturbed.status == 0, undisturbed
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) > 5
    draw, kills, lives = random.Random(script), 0, 0
    while kills < AT_RANDOM + AT_FILES:
        folder, lives = tmp_path / f"life {lives}", lives + 1
        while True:
            at_files = AT_RANDOM <= kills < AT_RANDOM + AT_FILES
            die_at = draw.randint(1, 30) if at_files else 0
            pid = forked.start(script, folder, *arguments, die_at=die_at)
            if kills < AT_RANDOM:
                kill_after(pid, draw.uniform(0.05, undisturbed.seconds))
            end = forked.wait(pid)
            if end.status == 0:
                break
            assert end.status == -9, end
            kills += 1
        left = contents(folder)
        assert left.keys() == expected.keys()
        assert [name for name in left if left[name] != expected[name]] == []
    print(json.dumps({"script": script, "kills": kills, "lives": lives}))
