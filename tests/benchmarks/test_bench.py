"""benchmarks.bench: how it times a process, what it makes of the runs, and that it goes on after a stop."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from bases import ROOT, command

from benchmarks import bench, rows, timing
from runtime.errors import UserError
from runtime.files import remove_leftovers
from training.footprint import Footprint

SCRIPT = """
import pathlib, time
for name in "ab", "c":
    time.sleep(0.3)
    for letter in name:
        pathlib.Path(letter).touch()
kept = bytearray(200 * 2**20)
time.sleep({more})
"""


@pytest.mark.parametrize("more", [0, 3600])
def test_a_process_is_timed_from_its_start_and_its_memory_counted(more: int, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """To its end, or until it has done enough."""
    monkeypatch.setattr(timing, "ROOT", tmp_path)
    run = timing.timed(["-c", SCRIPT.format(more=more)],
                       lambda: len(list(tmp_path.iterdir())) // 2 + (tmp_path / "c").exists(),
                       2 if more else sys.maxsize)
    assert run.start > 0.3 and len(run.each) == 1 and run.each[0] > 0.2 and run.whole < 1800
    assert more or 0.19 < run.memory < 0.5  # however large this process is


def test_an_error_amid_a_measurement_ends_what_is_measured(tmp_path: Path) -> None:
    """Nothing goes on writing into a folder that is then removed."""
    def done() -> int:
        if (text := file.read_text() if file.exists() else "").endswith("\n"):
            raise ZeroDivisionError(text)
        return 0

    file = tmp_path / "number"
    script = (f"import os, time; print(os.getpid(), file=open({str(file)!r}, 'w'), flush=True)\n"
              "time.sleep(3600)")
    with pytest.raises(ZeroDivisionError):
        timing.timed(["-c", script], done)
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


class Listing(list):
    """What os.scandir returns: an iterator and a context."""

    def __next__(self) -> os.DirEntry:
        if not self:
            raise StopIteration
        return self.pop(0)

    def __enter__(self) -> Listing:
        return self

    def __exit__(self, *error: object) -> None: ...


def test_images_are_counted_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private folder that vanishes once it was listed is passed over; one that stays does not count."""
    usual = os.scandir
    gone, there = (tmp_path / "good" / f".{name}.1.tmp" for name in ("001.png", "002.png"))
    for folder in (gone, there):
        folder.mkdir(parents=True)
    for file in (tmp_path / "good" / "000.png", there / "002.png", tmp_path / "grid.png"):
        file.touch()

    def listed(path: str) -> Iterator:
        if Path(path) != gone.parent:
            return Listing(usual(path))
        gone.mkdir(exist_ok=True)
        entries = list(usual(path))
        gone.rmdir()
        return Listing(entries)

    monkeypatch.setattr(os, "scandir", listed)
    assert rows.images_in(tmp_path) == 1 and not gone.exists()
    remove_leftovers(tmp_path)


def test_a_contender_that_fails_says_why() -> None:
    with pytest.raises(UserError, match="failed: .*no such thing"):
        timing.timed(["-c", "raise SystemExit('no such thing')"], lambda: 0)


def test_the_ratio_is_the_rivals_need_over_ours() -> None:
    row = bench.compared({
        "ours": [timing.Run([1.0, 2.0], 4.0, 2.0), timing.Run([3.0, 2.0], 6.0, 2.0)],
        "ours, lean": [timing.Run([4.0], 4.0, 1.0)],
        "other": [timing.Run([5.0], 10.0, 3.0)]}, at_peak=0.5)
    assert row["ours"] == {"seconds": 2.0, "range": [1.0, 3.0], "share_of_matmul": 0.25,
                           "seconds_to_first": 5.0, "peak_gib": 2.0,
                           "ratio": {"other": {"seconds": 2.5, "seconds_to_first": 2.0, "peak_gib": 1.5}}}
    assert row["ours, lean"]["ratio"]["other"]["peak_gib"] == 3.0 and "ratio" not in row["other"]


def test_a_stopped_measurement_goes_on_with_the_missing_rows(tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def row(name: str) -> rows.Row:
        def once() -> timing.Run:
            made.append(name)
            if name == "second" and len(made) == 3:
                raise KeyboardInterrupt
            return timing.Run([2.0], 1.0, 1.0)

        def never() -> timing.Run:
            raise UserError("no compiler")
        return rows.Row("fp32", 64, 1, 0.1, "step", {"ours": once, "other": never})

    monkeypatch.setattr(bench, "prepare", lambda config, work: None)
    monkeypatch.setattr(bench, "table", lambda place, full: {
        name: lambda name=name: row(name) for name in ("first", "second")})
    monkeypatch.setattr(bench, "matmul_rate", lambda device, dtype: 0.1)
    out = tmp_path / "cpu.json"
    assert command(bench.main, "--out", out).status == 130
    assert [row["what"] for row in json.loads(out.read_text())["rows"]] == ["first"]
    assert command(bench.main, "--out", out).status == 0
    assert made == ["first"] * 2 + ["second"] * 3
    first, second = json.loads(out.read_text())["rows"]
    assert first["failures"] == {"other": "no compiler"} and first["contenders"]["ours"]["seconds"] == 2.0
    assert second["contenders"]["ours"]["share_of_matmul"] == 0.5
    assert command(bench.main, "--out", out, "--rounds", 3).failed_with(str(out), "--restart")
    assert len(json.loads(out.read_text())["rows"]) == 2
    assert command(bench.main, "--out", out, "--only", "first", "--restart").status == 0
    assert len(made) == 7 and len(json.loads(out.read_text())["rows"]) == 1
    for text in ("[", "[1]"):
        out.write_text(text)
        assert command(bench.main, "--out", out).failed_with(str(out), "--restart")
        assert out.read_text() == text


def test_every_run_has_its_own_folder_and_is_told_the_base(tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it finds what another left, or names a base outside of the folder it is in: not followed."""
    def noted(command: list[str], *how: object) -> timing.Run:
        flags = dict(pairwise(command))
        assert flags["--base"] == place.base
        folders.append(Path(flags["--out"]))
        folders[-1].mkdir(parents=True, exist_ok=True)
        if killed:
            killed.clear()
            raise KeyboardInterrupt
        (folders[-1] / "adapter.safetensors").touch()
        return timing.Run([1.0], 1.0, 1.0)

    folders: list[Path] = []
    killed: list[bool] = []
    place = rows.Place(str(ROOT / "tiny"), "bottle", tmp_path, "cpu")
    monkeypatch.setattr(rows, "timed", noted)
    monkeypatch.setattr(rows, "arithmetic", lambda *what: Footprint(*range(7)))
    for make in rows.table(place, 128).values():
        for once in make().contenders.values():
            assert once() and once()
    assert len(folders) == len(set(folders)) > 50
    killed.append(True)
    with pytest.raises(KeyboardInterrupt):
        place.checkpoint(32)
    begun = len(folders)
    assert place.checkpoint(32) == place.checkpoint(32) == str(folders[-1]) and len(folders) == begun + 1


@pytest.mark.slow
def test_rows_on_the_embedded_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script of both sides runs: no contender fails. The other rows differ in precision and batch."""
    monkeypatch.setattr(rows, "STEPS", 2)
    names = ("training step, fp32", "one image, fp32", "inpainting", "whole ControlNet")
    for name in names:
        outcome = command(bench.main, "--base", "tiny", "--resolution", 128, "--rounds", 1, "--only", name,
                          "--out", tmp_path / "tiny.json")
        assert outcome.status == 0, outcome
    found = json.loads((tmp_path / "tiny.json").read_text())["rows"]
    assert len(found) == len(names)
    for row in found:
        assert not row["failures"], row
        for name, needs in row["contenders"].items():
            assert needs["seconds"] > 0 and 0.2 < needs["peak_gib"] < 8, (row["what"], name)
