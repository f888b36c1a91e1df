"""--select: what is worse than real photos is thrown away and drawn again, the same however it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Outcome, Place, command, rows
from forked_commands import End, ForkedCommands
from runs import contents, train_lora

import sample
from evaluation.networks import LITE, load_network
from runtime.files import read_rows
from sampling.scores import REASONS, Picture, bound, fit_scorer
from tiny.bottles import draw_bottle

CLASSES = ("broken_small", "contamination")
FLAGS = ("--steps", 2, "--per-class", 3, "--classes", *CLASSES, "--out", "out")
STRICT = ("--select", "strict", "--tries", 2)


@pytest.fixture(scope="module")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_lora(place, tmp_path_factory.mktemp("selection") / "run")


@pytest.fixture(scope="module")
def strict(run: Path, forked: ForkedCommands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, End]:
    """A folder of images that were selected, and what the command said. In one thread, as all that is
    compared with it bit by bit."""
    folder = tmp_path_factory.mktemp("selected") / "once"
    end = forked.wait(forked.start("sample", folder, "--ckpt", run, *FLAGS, *STRICT))
    assert end.status == 0, end
    return folder / "out", end


def draw(run: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, *FLAGS, *arguments)


def test_what_is_bad_is_thrown_away_and_drawn_again(strict: tuple[Path, End]) -> None:
    out, end = strict
    about = json.loads((out / "selection.json").read_text())
    assert about["bounds"].keys() == {"probability"} and about["photos"] == 12
    kept, thrown = rows(out / "samples.jsonl"), rows(out / "rejected/samples.jsonl")
    assert kept and thrown
    for row in (*kept, *thrown):
        bad = [key for key, limit in about["bounds"].items() if row[key] < limit]
        assert row["real_distance"] > 0 and 0 < row["nn_score"] < 1
        assert row.get("failed", []) == bad and row["select"] == "strict"
    for name in {row["file"] for row in (*kept, *thrown)}:
        own = [row.get("redraw", 0) for row in (*thrown, *kept) if row["file"] == name]
        there = any(row["file"] == name for row in kept)
        assert own == list(range(len(own))) and (there or len(own) == 2)
        assert (out / name).exists() == there
        place = out / "rejected" / Path(name).parent.name
        assert len(list(place.glob(f"{Path(name).stem}-*.png"))) == len(own) - there
    assert '"probability": "probability of its class"' in (out / "gallery.html").read_text()
    for name in CLASSES:
        count = sum(row["class"] == name for row in kept)
        drawn = count + sum(row["class"] == name for row in thrown)
        assert f"{name} {count} of 3 from {drawn} drawn" in end.out.splitlines()[-1]


def test_the_first_drawings_are_those_without_select(
        strict: tuple[Path, End], run: Path, forked: ForkedCommands, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_in(tmp_path, forked, "--ckpt", run, *FLAGS, "--batch-size", 1)
    assert "select" not in rows(Path("out/samples.jsonl"))[0]
    out, _ = strict
    for path in Path("out").glob("image/*/*.png"):
        name = path.relative_to("out")
        first = out / "rejected" / name.parent.name / f"{name.stem}-0.png"
        assert path.read_bytes() == (first if first.exists() else out / name).read_bytes()
    assert draw(run, *STRICT).failed_with("(select was off, is strict); give")


def test_batches_and_kills_do_not_matter(strict: tuple[Path, End], run: Path, forked: ForkedCommands,
                                         tmp_path: Path) -> None:
    """kill -9 in front of two changes to files."""
    expected = contents(strict[0].parent)
    arguments = "--ckpt", run, *FLAGS, *STRICT
    assert draw_in(tmp_path / "batches", forked, *arguments, "--batch-size", 3) == expected
    for die_at in (9, 12):
        pid = forked.start("sample", tmp_path / "killed", *arguments, die_at=die_at)
        assert forked.wait(pid).status == -9
    assert draw_in(tmp_path / "killed", forked, *arguments) == expected


def draw_in(folder: Path, forked: ForkedCommands, *arguments: object) -> dict[str, object]:
    end = forked.wait(forked.start("sample", folder, *arguments))
    assert end.status == 0, end
    return contents(folder)


def test_painted_damage_is_compared_with_real_damage(place: Place, inpaint_run: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = draw(inpaint_run, "--images", place.data / "image/good", "--classes", "broken_small",
                   "--select", "strict", "--layout", "mvtec", "--tries", 1, "--per-class", 2)
    assert outcome.status == 0 and "not by change, fidelity, iou" in outcome.err, outcome
    assert "not by copy_distance: 12 real photos have it, which are too few" in outcome.err
    found = [*read_rows(Path("out/samples.jsonl")), *read_rows(Path("out-rejected/samples.jsonl"))]
    assert len(found) == 2
    assert all({"fidelity", "change", "iou", *REASONS} <= row.keys() for row in found)


def test_too_few_photos_are_said(run: Path, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                 ) -> None:
    monkeypatch.chdir(tmp_path)
    assert draw(run, "--select", "light").failed_with("--select light", "12 photos", "take 19")
    assert draw(run, "--tries", 2).failed_with("--tries", "give --select")
    assert draw(run, "--select-network", "resnet18").failed_with("--select-network", "give --select")
    place.data.rename(place.data.with_name("away"))
    try:
        assert draw(run, *STRICT).failed_with(str(place.data))
    finally:
        place.data.with_name("away").rename(place.data)
    assert not Path("out/image").exists()


@pytest.mark.parametrize("content", ["someone's notes", "[1]", '{"notes": 1}'])
def test_a_file_in_the_way_of_the_thresholds(content: str, run: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/selection.json").write_text(content)
    assert draw(run, *STRICT).failed_with("out/selection.json", "--out")
    assert Path("out/selection.json").read_text() == content and not Path("out/image").exists()


def test_a_copy_is_seen_in_any_orientation() -> None:
    names = ["broken_large", "good"]
    pictures = [Picture(draw_bottle(name, seed, 64)[0]) for name in names for seed in range(10)]
    scorer = fit_scorer(load_network(LITE, None, torch.device("cpu")), pictures, np.repeat([0, 1], 10), names,
                        dict.fromkeys(names, False), "any", 0.2)
    copy = Picture(np.rot90(pictures[3].image[:, ::-1]).copy())
    scores = scorer(copy, "broken_large")
    assert scores["copy_distance"] < 0.1 < scorer.bounds["copy_distance"] < 1
    exact, another = (scorer(picture, "broken_large")["nn_score"] for picture in (pictures[3], pictures[12]))
    assert exact == 1 > another
    assert scorer.failed(scores) == ["copy_distance"]
    assert "probability" in scorer.failed(scorer(pictures[12], "broken_large"))


def test_the_bound_is_the_kth_worst() -> None:
    values = np.array([*range(1, 20), np.nan])
    assert (bound(values, 0.05), bound(values, 0.2), bound(values[:18], 0.05)) == (1, 4, None)
