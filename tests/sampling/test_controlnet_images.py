"""sample.py with a checkpoint of train_controlnet.py: damage drawn where the masks say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Outcome, Place, command, rows, write_base
from PIL import Image
from runs import train_control
from trees import save, square_mask

import sample
import train_inpaint
from checkpoints import loading
from checkpoints.adapter import read_adapter, save_adapter
from data import DataConfig, load_dataset
from runtime.files import sha256
from sd.pretrained.weights import load_vae

DAMAGES = ["broken_large", "broken_small", "contamination"]


@pytest.fixture(scope="module")
def run(place: Place, stage_a: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose ControlNet does something; trained with dropped masks and classes."""
    out = tmp_path_factory.mktemp("control") / "run"
    outcome = train_control(place, stage_a, "--out", out, "--max-steps", 6, "--lr", 0.01, "--control-rank", 2)
    assert outcome.status == 0, outcome
    return out


@pytest.fixture(autouse=True)
def masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Mask files: a square one and one that is not, for every class."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "masks/a.png", square_mask(255))
    save(tmp_path / "masks/b.png", square_mask(7, size=(128, 96)))
    return tmp_path / "masks"


def draw(run: Path, *arguments: object) -> Outcome:
    return command(sample.main, "--ckpt", run, "--steps", 2, "--per-class", 2, *arguments)


def pixels(out: str, damage: str, number: int, part: str = "image") -> np.ndarray:
    with Image.open(f"{out}/{part}/{damage}/{number:03d}{'_mask' * (part == 'mask')}.png") as image:
        return np.asarray(image).astype(int)


def test_the_mask_bank(run: Path) -> None:
    """By default the masks are the training data's, re-placed; what is drawn reads back as a dataset."""
    outcome = draw(run, "--guidance", 2, "--mask-guidance", 3)
    assert outcome.status == 0, outcome
    noted = rows(Path("generated/samples.jsonl"))
    assert len(noted) == 8 and all(row["control_scale"] == 1 and row["mask_guidance"] == 3 for row in noted)
    for row in noted:
        if row["class"] == "good":
            assert "mask" not in row
        else:
            assert Path(row["mask"]).parent.name == row["class"]
            assert np.shape(row["transform"]["matrix"]) == (2, 3)
    back = load_dataset(DataConfig(["generated"], resolution=64, load_masks=True, augment=False))
    assert back.classes == [*DAMAGES, "good"] and len(back) == 8
    assert all(back.example(i, 0)["mask"].any() == (i < 6) for i in range(8))
    with Image.open("generated/grid.png") as grid:
        assert grid.height > 7 * 64  # a second row of outlined masks for each damage


def test_given_masks_are_used_as_they_are(run: Path, masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sample, "sample_images", lambda *given: seen.append(given[-1])
                        or torch.zeros(len(given[3]), 3, 64, 64))
    assert draw(run, "--masks", masks, "--classes", "broken_large", "good", "--batch-size", 1).status == 0
    for number, name in enumerate("ab"):
        mask = pixels("generated", "broken_large", number, "mask")
        assert set(np.unique(mask)) == {0, 1} and mask.shape == (64, 64)
        condition = seen[number].condition
        assert condition.shape == (1, 3, 64, 64) and np.array_equal(condition[0, 2].numpy(), mask)
        assert rows(Path("generated/samples.jsonl"))[number]["mask"].endswith(f"{name}.png")
    assert np.array_equal(pixels("generated", "broken_large", 0, "mask"),
                          np.asarray(Image.open(masks / "a.png").resize((64, 64), Image.Resampling.BOX)) > 0)
    assert all(control.condition.sum() == 0 for control in seen[2:])
    save(masks / "c.png", square_mask(255))
    assert draw(run, "--masks", masks, "--classes", "broken_large").failed_with("--images or --masks was")


def test_scale_and_guidance(run: Path, stage_a: Path, masks: Path) -> None:
    """At --control-scale 0 it draws what the class checkpoint draws, to the last bit."""
    flags = ("--masks", masks, "--classes", "broken_small")
    assert draw(stage_a, "--classes", "broken_small", "--out", "class").status == 0
    for name, more in {"none": ("--control-scale", 0), "half": ("--control-scale", 0.5), "whole": (),
                       "guided": ("--mask-guidance", 4)}.items():
        outcome = draw(run, *flags, *more, "--out", name)
        assert outcome.status == 0 and ("the masks say nothing" in outcome.err) == (name == "none")
    drawn = {name: pixels(name, "broken_small", 0) for name in ("class", "none", "half", "whole", "guided")}
    assert np.array_equal(drawn["none"], drawn["class"])
    different = [drawn[name] for name in ("class", "half", "whole", "guided")]
    assert all((a != b).any() for i, a in enumerate(different) for b in different[:i])


def test_it_controls_an_inpainting_checkpoint_too(place: Place, run: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """With the damage types that the ControlNet knows; at --control-scale 0 nothing changes."""
    base = write_base(tmp_path / "base", inpainting=True)
    outcome = command(train_inpaint.main, "--data", place.data, "--base", base, "--resolution", 64,
                      "--preview-every", 0, "--max-steps", 2, "--lr", 0.01, "--class-dropout", 0.2,
                      "--latent-variants", 1, "--out", tmp_path / "inpaint")
    assert outcome.status == 0, outcome
    photos = place.data / "image/good"
    for name, more in {"alone": (), "none": ("--control", run, "--control-scale", 0),
                       "controlled": ("--control", run),
                       "guided": ("--control", run, "--mask-guidance", 3)}.items():
        outcome = draw(tmp_path / "inpaint", "--images", photos, "--guidance", 2, "--out", name, *more)
        assert outcome.status == 0 and "say nothing" not in outcome.err, outcome
    alone, none, controlled, guided = (pixels(name, "broken_large", 1)
                                    for name in ("alone", "none", "controlled", "guided"))
    assert np.array_equal(alone, none)
    assert (controlled != alone).any() and (guided != controlled).any()
    assert rows(Path("controlled/samples.jsonl"))[0]["control"] == sha256(run / "adapter.safetensors")
    # Its base has been moved: --base is the base of both. Only the model that paints needs a VAE.
    tensors, header = read_adapter(run / "adapter.safetensors")
    save_adapter(Path("moved.safetensors"), tensors, dataclasses.replace(header, base=str(tmp_path / "gone")))
    moved = (tmp_path / "inpaint", "--images", photos, "--guidance", 2, "--control", "moved.safetensors")
    assert draw(*moved, "--out", "moved").failed_with("moved.safetensors", "gone", "--base")
    asked: list[str] = []
    monkeypatch.setattr(loading, "load_vae", lambda base, **how: asked.append(base) or load_vae(base, **how))
    assert draw(*moved, "--out", "moved", "--base", base).status == 0 and asked == [str(base)]
    assert np.array_equal(pixels("moved", "broken_large", 1), controlled)
    paint = (tmp_path / "inpaint", "--images", photos, "--out", "refused")
    assert draw(*paint, "--control", tmp_path / "inpaint").failed_with("--control", "train_controlnet.py")
    assert draw(*paint, "--control-scale", 2).failed_with("--control-scale", "add --control")
    assert draw(run, "--control", run).failed_with("--control", "'control'")


def test_a_channel_a_class(place: Place, stage_a: Path, masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = train_control(place, stage_a, "--out", "run", "--max-steps", 1, "--class-channels")
    assert outcome.status == 0, outcome
    seen = []
    monkeypatch.setattr(sample, "sample_images", lambda *given: seen.append(given[-1])
                        or torch.zeros(len(given[3]), 3, 64, 64))
    assert draw(Path("run"), "--masks", masks, "--per-class", 1).status == 0
    shown = torch.cat([control.condition for control in seen]).sum((2, 3)) > 0
    assert torch.equal(shown, torch.diag(torch.tensor([True, True, True, False])))


def test_refusals(place: Place, run: Path, stage_a: Path, masks: Path) -> None:
    assert draw(stage_a, "--masks", masks).failed_with("--masks", "'class'")
    assert draw(stage_a, "--control-scale", 0.5).failed_with("--control-scale", "'class'")
    assert draw(run, "--images", masks).failed_with("--images", "'control'")
    assert draw(run, "--masks", "nowhere").failed_with("nowhere")
    save(masks / "empty.png", square_mask(0))
    assert draw(run, "--masks", masks).failed_with("empty.png", "empty")
    long = np.zeros((32, 128), np.uint8)
    long[10:14] = 1
    save(Path("long/empty.png"), long)
    assert draw(run, "--masks", "long").failed_with("empty.png", "32 pixels")
    outcome = train_control(place, stage_a, "--out", "sure", "--max-steps", 1, "--mask-dropout", 0)
    assert outcome.status == 0, outcome
    assert draw(Path("sure"), "--mask-guidance", 2).failed_with("--mask-guidance 2", "--mask-dropout")
    assert not Path("generated").exists()
