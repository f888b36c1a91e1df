"""benchmarks.selection on little: each level is measured, and a second command measures nothing anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import command

from benchmarks import selection
from runtime.files import save_rows
from tiny.demo import write_demo
from tiny.judge import classifier


def test_every_level_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stand_in(script: str, *arguments: object) -> float:
        """Draws bottles in place of the commands; one image was thrown away."""
        calls.append(script)
        target = Path(str(arguments[arguments.index("--out") + 1] if "--out" in arguments else arguments[1]))
        if script.startswith("train_"):
            target.mkdir(parents=True)
            (target / "adapter.safetensors").touch()
        else:
            write_demo(target, 1, len(calls), size=64)
        if "strict" in arguments:
            save_rows(target / "rejected/samples.jsonl", [{"failed": ["probability"]}])
        return 8.0

    monkeypatch.setattr(selection, "command", stand_in)
    monkeypatch.setattr(selection, "load_or_train", lambda *_: classifier().eval())
    given = ("--seeds", 1, "--per-class", 1, "--strategies", "class", "control", "--work", tmp_path, "--out",
             tmp_path / "out.json")
    assert command(selection.main, *given).status == 0
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["strategy"] for row in found] == 3 * ["class"] + 3 * ["control"]
    assert [row["level"] for row in found] == 2 * ["off", "light", "strict"]
    assert [(row["kept"], row["drawn"]) for row in found] == 2 * [(4, 4), (4, 4), (4, 5)]
    assert [name for name in calls if name.startswith("train_")] == ["train_class.py", "train_controlnet.py"]
    assert found[2]["thrown_away"] == {"probability": 1} and found[0]["seconds_a_kept_image"] == 2
    count = len(calls)
    assert command(selection.main, *given).status == 0 and len(calls) == count
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == found
