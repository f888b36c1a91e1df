"""benchmarks.placement on little: every row is there, and an earlier result is kept beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import command

from benchmarks import placement
from tiny.demo import write_demo


def test_every_row_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SIDE", 128)
    write_demo(tmp_path / "bottle", 1, 0, size=128)
    (tmp_path / "earlier.json").write_text('{"rule": "before"}')
    outcome = command(placement.main, "--masks", 2, "--cloth-masks", 3, "--photos", tmp_path / "bottle",
                      "--earlier", tmp_path / "earlier.json", "--out", tmp_path / "out.json")
    assert outcome.status == 0, outcome
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["earlier"] == {"rule": "before"} and found["bolts"]["of"] == 8
    assert found["bolts"]["on its part"]["of"] <= 6 and found["bolts"]["placed"] <= 8
    tenths = found["cloth"]["tenths"]
    assert len(tenths) == 10 and sum(tenths) == pytest.approx(10, abs=0.01)
    assert found["photographed bottles"]["of"] == 6 and found["1,000 placements at 512 px"]["seconds"] > 0
