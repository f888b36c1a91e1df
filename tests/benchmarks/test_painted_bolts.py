"""benchmarks.painted_bolts on little: both rules are measured, and masks are looked for on the right part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bases import command
from PIL import Image

from benchmarks import downstream, painted_bolts
from runtime.files import save_rows
from tiny import bolts
from tiny.demo import write_demo


def test_both_rules_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def stand_in(script: str, *arguments: object) -> None:
        """Draws bolts in place of the commands. The masks of the earlier rule lie on the head."""
        calls.append(script)
        target = Path(str(arguments[arguments.index("--out") + 1] if "--out" in arguments else arguments[1]))
        if script == "sample.py":
            write_demo(target, 2, 3, size=256, product="bolt")
            shutil.rmtree(target / "mask")
            for damage in painted_bolts.DAMAGES:
                for number in range(2):
                    part = "head" if "--masks" in arguments else bolts.PART_OF[damage]
                    there = bolts.bolt_parts("good", 1_000_000 + number, 256) == 1 + bolts.PARTS.index(part)
                    assert there.any()
                    file = target / f"mask/{damage}/{number:03}_mask.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(there.astype(np.uint8)).save(file)
            save_rows(target / "samples.jsonl", [
                {"class": damage, "number": number, "photo": f"photos/image/good/{number:03}.png",
                 "file": f"image/{damage}/{number:03}.png"}
                for damage in painted_bolts.DAMAGES for number in range(2)])
        elif script == "evaluate.py":
            target.mkdir(parents=True)
            (target / "metrics.json").write_text(json.dumps({"numbers": {
                "generated": {"all": {"iou": {"value": 0.5}, "dca": {"value": 1}}}, "copy": {
                    "all": {}}}}))
        elif script == "data.py":
            target.mkdir(parents=True)

    monkeypatch.setattr(painted_bolts, "command", stand_in)
    monkeypatch.setattr(downstream, "command", stand_in)
    monkeypatch.setattr(painted_bolts, "EPOCHS", 1)
    outcome = command(painted_bolts.main, "--per-class", 2, "--judged-by", 8, "--seeds", 1, 2, "--earlier",
                      tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "out.json")
    assert outcome.status == 0, outcome
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["masks"], row["seed"]) for row in rows] == [
        ("by surroundings", 1), ("by an earlier rule", 1), ("by surroundings", 2), ("by an earlier rule", 2)]
    assert [(row["on its part"], row["images"]) for row in rows] == [(6, 6), (2, 6)] * 2
    assert all(sum(map(sum, row["confusion"])) == 6 for row in rows)
    assert rows[0]["downstream"] == {"generated": {"iou": {"value": 0.5}}}
    assert "downstream" not in rows[2] and calls.count("evaluate.py") == 2
