"""benchmarks.photos and benchmarks.ablation, with stand-ins for the commands: what is asked of them, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bases import command

from benchmarks import ablation, downstream, photos
from dataset.image_files import read_image
from dataset.layouts import find_products
from dataset.scan import scan_products
from evaluation.numbers import GENERATED
from runtime.files import save_rows
from tiny.demo import write_demo

NUMBERS = {GENERATED: {"all": {"dca": {"value": 0.5}, "seam_ratio": {"value": 1.0}, "iou": {"value": 0.3}}}}


def test_every_strategy_is_measured_on_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_demo(tmp_path / "bottle", 4, 0, size=64)
    calls: list[tuple[object, ...]] = []

    def stand_in(*words: object) -> float:
        calls.append(words)
        out = Path(str(words[words.index("--out") + 1]))
        out.mkdir(parents=True)
        if words[0] == "sample.py":
            save_rows(out / "samples.jsonl", [{"class": "good"}, {"class": "contamination"}])
            if "strict" in words:
                save_rows(out / "rejected/samples.jsonl", [{"class": "good", "failed": ["probability"]}] * 58)
        elif words[0] == "evaluate.py":
            (out / "metrics.json").write_text(json.dumps({"numbers": NUMBERS}))
        else:
            (out / "adapter.safetensors").touch()
        return 3.0

    monkeypatch.setattr(photos, "command", stand_in)
    monkeypatch.setattr(downstream, "command", stand_in)
    levels = ("off", "strict", "off-as-many")
    given = ("--data", tmp_path / "bottle", "--trained-on", 3, "--levels", *levels, "--work",
             tmp_path / "work", "--out", tmp_path / "out.json")
    outcome = command(photos.main, *given)
    assert outcome.status == 0, outcome
    found = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["strategy"], row["level"]) for row in found] == [
        (strategy, level) for strategy in ("class", "inpaint", "control") for level in levels]
    assert (found[1]["drawn"], found[1]["asked"]) == (60, 40)
    assert found[1]["thrown_away"] == {"probability": 58}
    drawn = [words[words.index("--per-class") + 1] for words in calls if words[0] == "sample.py"]
    assert drawn == [20, 20, 30] * 3  # the third as many as strict drew, of two types
    assert found[0]["numbers"] == {GENERATED: {"all": {"dca": {"value": 0.5}}}}
    assert found[0]["seconds_a_kept_image"] == 1.5
    scripts = [words[0] for words in calls]
    assert [scripts.count(f"train_{what}.py") for what in ("class", "inpaint", "controlnet")] == [1, 1, 1]
    assert all(words[-2:] == ("contamination", "good") for words in calls if words[0] == "evaluate.py")
    assert command(photos.main, *given).status == 0 and len(calls) == len(scripts)
    assert command(photos.main, *given, "--steps", 7).failed_with("--work", "other flags")
    more = (*given, "--seed", 1, "--strategies", "class", "--levels", "off", "--downstream")
    assert command(photos.main, *more).status == 0
    row = json.loads((tmp_path / "out.json").read_text())["rows"][-1]
    assert row["downstream"] == {GENERATED: {"iou": {"value": 0.3}}}
    asked = next(words for words in calls if "--downstream" in words)
    assert asked[asked.index("--ckpt") + 1] == tmp_path / "work/class-1"
    too_early = (*given, "--seed", 2, "--levels", "off-as-many")
    assert command(photos.main, *too_early).failed_with("--levels off-as-many", "strict")
    assert command(photos.main, *given, "--strategies", "b1").failed_with("--strategies", "'b1'", "inpaint")


def test_photos_set_aside_are_not_trained_on(tmp_path: Path) -> None:
    write_demo(tmp_path / "bottle", 4, 0, size=64)
    config = photos.Config(str(tmp_path / "bottle"), trained_on=3)
    photos.set_aside(config, tmp_path / "aside")
    aside = scan_products(find_products([str(tmp_path / "aside")]))
    assert not aside.problems and {photo.damage for photo in aside.photos} == {
        "broken_large", "broken_small", "contamination", "good"}
    every = {read_image(photo.image).tobytes(): photo
             for photo in scan_products(find_products([str(tmp_path / "bottle")])).photos}
    for photo in aside.photos:
        own = every[read_image(photo.image).tobytes()]
        assert own.damage == photo.damage
        if photo.damage != "good":
            assert (photo.region() == own.region()).all()


def test_an_arm_may_draw_another_file_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def stand_in(*words: object) -> float:
        calls.append(words)
        if words[0] == "sample.py":
            save_rows(Path(str(words[words.index("--out") + 1])) / "samples.jsonl", [{}])
        elif words[0] == "train_class.py":
            out = Path(str(words[words.index("--out") + 1]))
            out.mkdir(parents=True, exist_ok=True)
            (out / "adapter.safetensors").touch()
        return 1.0

    monkeypatch.setattr(ablation, "command", stand_in)
    monkeypatch.setattr(ablation, "load_or_train", lambda *_: None)
    monkeypatch.setattr(ablation, "load_folder", lambda folder: ())
    monkeypatch.setattr(ablation, "demo_images", lambda *_: ())
    monkeypatch.setattr(ablation, "classified", lambda *_: torch.eye(4, dtype=torch.long))
    recorded: dict[str, list[dict]] = {}
    monkeypatch.setattr(ablation, "record", lambda file, **about: recorded.update({file: about["rows"]}))
    assert command(ablation.main, "weights", "--work", tmp_path).status == 0
    rows = recorded["benchmarks/weights.json"]
    assert [row["arm"] for row in rows] == ["last", "of the best preview"] and rows[0]["correct"] == 4
    drawn = [words for words in calls if words[0] == "sample.py"]
    run = drawn[0][drawn[0].index("--ckpt") + 1]
    assert drawn[0][-1] != drawn[1][-1] == f"{run}/best.safetensors"
    assert rows[0]["train_seconds"] is not None is rows[1]["train_seconds"]
