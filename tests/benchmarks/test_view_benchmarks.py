"""benchmarks.views: what one square loses and no view does; benchmarks.painted_views trains and paints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bases import command
from PIL import Image

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
                      tmp_path / "work", "--no-downstream", "--out", tmp_path / "painted.json")
    assert outcome.status == 0, outcome
    rows = json.loads((tmp_path / "painted.json").read_text())["rows"]
    assert [row["view"] for row in rows] == ["whole", "close"]
    assert all(row["images"] == 2 and 0 <= row["iou"] <= 1 and 0 <= row["right"] <= 2 for row in rows)
    assert (tmp_path / "work/close-0/image/spot/000.png").is_file()
    for damage in ("spot", "flake"):
        masks = [tmp_path / f"work/tiles/mask/{damage}/{number:03}_mask.png" for number in range(2)]
        assert all(np.asarray(Image.open(mask)).any() for mask in masks)
    assert len(list((tmp_path / "work/tiles/image/good").iterdir())) == 2
