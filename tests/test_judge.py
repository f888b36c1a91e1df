"""The judge of demo images, on a training of seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import errors
from demo import CLASSES, write_demo
from tiny import judge


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["judge", *map(str, arguments)])
    try:
        errors.run(judge.main)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_it_counts_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "bottle", 2, seed=1, size=64)
    monkeypatch.setattr(judge, "demo_images", lambda first, per_class, draw=judge.demo_images: draw(first, 8))
    assert run(monkeypatch, tmp_path / "bottle", "--per-class", 8) == 0
    out = capsys.readouterr().out
    assert "/8 = " in out and all(f"  {name}" in out for name in CLASSES)


def test_mistakes_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    write_demo(tmp_path / "bottle", 1, seed=1, size=64)
    bad = tmp_path / "bottle" / "image" / "good" / "000.png"
    assert run(monkeypatch, tmp_path / "bottle", "--per-class", 0) == 2
    assert "--per-class 0" in capsys.readouterr().err
    bad.write_bytes(bad.read_bytes()[:200])
    for folder, named in ((tmp_path / "bottle", str(bad)), (tmp_path / "nothing", "nothing")):
        assert run(monkeypatch, folder) == 2
        err = capsys.readouterr().err
        assert named in err and err.count("\n") == 1
