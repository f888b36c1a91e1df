"""benchmarks.views: what one square loses and no view does; benchmarks.painted_views trains and paints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bases import command

from benchmarks import painted_views, views


def test_what_one_square_of_a_strip_loses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "SHAPES", {"strips": (128, 1024)})
    outcome = command(views.main, "--photos", 6, "--out", tmp_path / "views.json")
    assert outcome.status == 0, outcome
    rows = json.loads((tmp_path / "views.json").read_text())["products"]["strips"]
    assert rows["one square"]["lost"] > 0 and rows["one square"]["pixels lost"] > 0
    for view in ("whole", "close", "mixed", "pad"):
        assert rows[view]["regions"] == rows["one square"]["regions"]
        assert (rows[view]["lost"], rows[view]["pixels lost"]) == (0, 0), view


@pytest.mark.slow
def test_boards_are_painted_with_each_view(tmp_path: Path) -> None:
    outcome = command(painted_views.main, "--photos", 2, "--images", 1, "--epochs", 1, "--keep",
                      tmp_path / "work", "--out", tmp_path / "painted.json")
    assert outcome.status == 0, outcome
    rows = json.loads((tmp_path / "painted.json").read_text())["rows"]
    assert [row["view"] for row in rows] == ["whole", "close"]
    assert all(row["images"] == 1 and 0 <= row["iou"] <= 1 for row in rows)
    assert (tmp_path / "work/close-0/image/spot/000.png").is_file()
