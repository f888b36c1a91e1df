"""DCA and FID of previews while training: logged, drawn, the best kept, the same after a stop."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import CPU, Outcome, Place, command, rows
from safetensors import safe_open
from safetensors.torch import load_file

import train_class
from evaluation.networks import LITE
from runtime.pictures import curves
from sd.pretrained.weights import load_vae
from tiny.bottles import CLASSES, draw_bottle
from training import run_folder, validation
from training.latents import Latents
from training.previews import Preview
from training.run_folder import rank

TINY = ("--features", LITE, "--judge", LITE)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(place: Place, *arguments: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                   "--out", "run", "--preview-every", 1, "--preview-steps", 1, "--batch-size", 12,
                   "--lr", 0.01, *arguments)


def validations() -> list[dict]:
    return [row for row in rows(Path("run/metrics.jsonl"))[1:] if "validation" in row]


def best_step() -> int:
    with safe_open("run/best.safetensors", "pt") as file:
        return json.loads(file.metadata()["adapter"])["step"]


@pytest.mark.parametrize("rule", ["dca", "fid"])
def test_previews_are_scored_and_the_best_is_kept(place: Place, rule: str) -> None:
    outcome = train(place, *TINY, "--epochs", 3, "--best", rule)
    assert outcome.status == 0 and "the classifiers are right on" in outcome.err, outcome
    found = validations()
    assert [row["step"] for row in found] == [1, 2, 3] and [row["epoch"] for row in found] == [0, 1, 2]
    scores = [row["validation"] for row in found]
    assert all(s["fid"] > 0 and 0 <= s["dca"] <= 1 and 0 <= s["ceiling"] <= 1 for s in scores)
    assert best_step() == 1 + max(range(3), key=lambda i: rank(scores[i], rule))
    assert json.loads(Path("run/config.json").read_text())["best"] == rule
    metrics = rows(Path("run/metrics.jsonl"))[1:]
    assert curves(metrics).height > curves([row for row in metrics if "loss" in row]).height


def test_a_stopped_run_scores_the_same_and_keeps_the_same_best(place: Place,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder.RunFolder, "draw_curves", lambda self: None)
    assert train(place, *TINY, "--epochs", 3).status == 0
    whole, best, tensors = validations(), best_step(), load_file("run/best.safetensors")
    assert train(place, *TINY, "--epochs", 1, "--restart").status == 0
    assert len(validations()) == 1
    assert train(place, *TINY, "--epochs", 3).status == 0
    assert validations() == whole and best_step() == best
    again = load_file("run/best.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_validation_changes_nothing_that_is_learnt(place: Place) -> None:
    assert train(place, *TINY, "--epochs", 2).status == 0
    scored = load_file("run/adapter.safetensors")
    assert train(place, "--no-validate", "--epochs", 2, "--restart").status == 0
    assert not validations() and not Path("run/best.safetensors").exists()
    plain = load_file("run/adapter.safetensors")
    assert all(torch.equal(scored[name], tensor) for name, tensor in plain.items())


def test_without_weights_nothing_takes_their_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", "hub")
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    outcome = train(place, "--epochs", 1)
    assert outcome.status == 0
    # one short line a network, and said once
    said = [line for line in outcome.err.splitlines() if "inception" in line or "resnet18" in line]
    assert [line.split(": ")[1] for line in said] == ["no FID and KID", "no DCA"]
    assert all("no network" in line and len(line) < 110 for line in said)
    assert validations()[0]["validation"] == {"dca": None, "ceiling": None, "fid": None, "kid": None}
    assert not Path("run/best.safetensors").exists()
    assert train(place, "--judge-weights", "gone.pth", "--restart").failed_with("gone.pth")


def test_previews_like_the_data_score_better(place: Place) -> None:
    """Fresh bottles against noise."""
    config = train_class.Config(data=[str(place.data)], resolution=64, features=LITE, judge=LITE)
    dataset = train_class.load_dataset(config)
    latents = Latents(config, "class", dataset, load_vae(str(place.base), **CPU), lambda batch: {})
    scorer = validation.Validator(config, Path("run"), latents)
    drawn = np.stack([draw_bottle(name, 900 + i, 64)[0] for name in CLASSES for i in range(4)])
    good = Preview(None, torch.from_numpy(drawn).permute(0, 3, 1, 2) / 127.5 - 1, [0] * 16)
    grey = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)) / 3
    noise = Preview(None, grey, [0] * 16)
    assert scorer(good)["fid"] < scorer(noise)["fid"] and scorer(good)["kid"] < scorer(noise)["kid"]


def test_close_views_are_compared_with_close_views(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "read_square", None)  # the whole photos' squares are not used
    assert train(place, *TINY, "--epochs", 1, "--view", "close").status == 0
    assert all(isinstance(validations()[0]["validation"][name], float) for name in ("dca", "fid", "kid"))


def test_rules() -> None:
    low = {"dca": 0.5, "fid": 9.0, "kid": 0.1, "ceiling": 1.0}
    high = {**low, "fid": 8.0, "kid": 0.2}
    assert rank(high, "dca") > rank(low, "dca") and rank(low, "kid") > rank(high, "kid")
    assert rank({**low, "fid": None}, "dca") is not None and rank({**low, "dca": None}, "dca") is None
    assert rank({**low, "fid": None}, "dca") < rank({**low, "fid": 500.0}, "dca")  # with equal DCA
