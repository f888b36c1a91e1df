"""The commands that chose the judges and measure their intervals, on little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import command

from benchmarks import coverage, judges, places
from evaluation.networks import LITE
from tiny.demo import write_demo


def test_judges_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_demo(tmp_path / "bottle", 3, 0, size=64)
    monkeypatch.setattr(judges, "DECAYS", (1e-3,))
    monkeypatch.setattr(judges, "fabric", lambda count: judges.photographed(str(tmp_path / "bottle"), False))
    outcome = command(judges.main, "--data", tmp_path / "bottle", "--networks", LITE, "--seeds", 1,
                      "--fine-tune-epochs", 1, "--out", tmp_path / "out.json")
    assert outcome.status == 0, outcome
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(rows) == {f"{LITE}, {what}" for what in ("photos", "through the VAE", "fabric")}
    for row in rows.values():
        assert row["images"] == 12 and {"nested", "fine-tuned, 1 epochs"} < set(row["right"])
        assert all(0 <= count <= 12 for counts in row["right"].values() for count in counts)
    assert rows[f"{LITE}, photos"]["right"] == rows[f"{LITE}, fabric"]["right"]


def test_fabric_is_drawn_with_and_without_damage() -> None:
    found = judges.fabric(1)
    assert len(found.pictures) == len(judges.FABRIC) and found.pictures[0].shape == (256, 256, 3)
    assert found.label.tolist() == [0, 1, 2, 3]


def test_coverage_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "SETTINGS", coverage.SETTINGS[4:5])
    outcome = command(coverage.main, "--repeats", 2, "--out", tmp_path / "out.json")
    assert outcome.status == 0, outcome
    row, = json.loads((tmp_path / "out.json").read_text())["settings"]
    assert row["photos"] == 7 and 0 <= row["held"] <= 1 and 0 < row["truth"] < 1


def test_places_are_counted_on_real_photos(tmp_path: Path) -> None:
    write_demo(tmp_path / "bottle", 2, 0, size=64)
    outcome = command(places.main, "--per-class", 1, "--seeds", 1, "--data", tmp_path / "bottle",
                      "--out", tmp_path / "out.json")
    assert outcome.status == 0, outcome
    products = json.loads((tmp_path / "out.json").read_text())["products"]
    assert set(products) == {"data.py demo --seed 1", "bottle"}
    assert all("it takes 80% of 5 or more" in found for damages in products.values()
               for found in damages.values())
