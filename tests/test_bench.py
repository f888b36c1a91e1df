"""bench.py: how it times a process, and what it makes of the runs."""

from __future__ import annotations

from pathlib import Path

import pytest

import bench
from errors import UserError

SCRIPT = """
import pathlib, time
for name in "ab", "c":
    time.sleep(0.3)
    for letter in name:
        pathlib.Path(letter).touch()
kept = bytearray(200 * 2**20)
"""


def test_a_process_is_timed_from_its_start_and_its_memory_counted(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    run = bench.timed(["-c", SCRIPT], lambda: len(list(tmp_path.iterdir())) // 2 + (tmp_path / "c").exists())
    assert run.start > 0.3 and len(run.each) == 1 and run.each[0] > 0.2
    assert 0.19 < run.memory < 0.5  # however large this process is


def test_a_contender_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="failed: .*no such thing"):
        bench.timed(["-c", "raise SystemExit('no such thing')"], lambda: 0)


def test_the_ratio_is_the_rivals_need_over_ours() -> None:
    row = bench.compared("step", {
        "ours": [bench.Run([1.0, 2.0], 4.0, 2.0), bench.Run([3.0, 2.0], 6.0, 2.0)],
        "other": [bench.Run([5.0], 10.0, 3.0)]})
    assert row["ours"] == {"seconds": 2.0, "range": [1.0, 3.0], "seconds_to_first": 5.0, "peak_gib": 2.0}
    assert row["ratio"] == {"seconds": 2.5, "seconds_to_first": 2.0, "peak_gib": 1.5}
