"""train_inpaint.py as a person runs it, and what it learns from: holes, latent masks, widened bases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import UNET, Outcome, Place, command, place, rows, write_base
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from trees import make_flat, make_product, save

import run_folder
import sd.inpainting
import train_inpaint
from adapter import ClassContext
from data import DataConfig
from demo import write_demo
from holes import HoleDataset, load_holes
from masks import latent_mask
from sd.inpainting import UNetInPicture, load_inpainting_unet, widen
from sd.unet import UNet
from sd.vae import VAE, VAEConfig
from sd.weights import DEFAULT_BASE, INPAINTING_BASE

__all__ = ["place"]
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with an inpainting UNet of its own."""
    return write_base(tmp_path_factory.mktemp("nine") / "base", inpainting=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "curves", lambda rows: Image.new("RGB", (8, 8)))


def train(data: Path, base: Path, *arguments: object) -> Outcome:
    return command(train_inpaint.main, "--data", data, "--base", base, "--resolution", 64,
                   "--latent-variants", 2, "--preview-every", 0, "--no-validate", *arguments)


# --- nine channels ---

@torch.no_grad()
def test_a_widened_base_computes_what_it_did() -> None:
    torch.manual_seed(0)
    unet = UNet(UNET)
    z_t, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 2, 16)
    before = unet(z_t, t, context)
    picture = torch.ones(2, 1, 8, 8), torch.randn(2, 4, 8, 8)
    assert torch.equal(UNetInPicture(widen(unet), *picture)(z_t, t, context), before)
    assert unet.config.in_channels == 9


def test_the_order_of_channels_and_guidances_two_halves() -> None:
    z_t, cells, z_masked = torch.randn(4, 4, 2, 2), torch.ones(2, 1, 2, 2), torch.randn(2, 4, 2, 2)
    seen = []

    class Watching(UNet):
        def forward(self, z: torch.Tensor, *others: object) -> None:
            seen.append(z)

    UNetInPicture(Watching(UNET), cells, z_masked)(z_t, None, None)
    assert torch.equal(seen[0][:, :4], z_t) and (seen[0][:, 4] == 1).all()
    assert torch.equal(seen[0][2:, 5:], z_masked) and torch.equal(seen[0][:2, 5:], z_masked)


def test_which_unet_a_base_stands_for(place: Place, nine: Path, capsys: pytest.CaptureFixture) -> None:
    unet, widened = load_inpainting_unet(str(nine), **CPU)
    own = load_file(nine / "unet_inpaint/diffusion_pytorch_model.safetensors")
    assert not widened and torch.equal(unet.conv_in.weight, own["conv_in.weight"])
    assert capsys.readouterr().err == ""
    unet, widened = load_inpainting_unet(str(place.base), **CPU)
    assert widened and not unet.conv_in.weight[:, 4:].any() and unet.conv_in.weight[:, :4].any()
    assert "four input channels" in capsys.readouterr().err


def test_the_default_base_has_an_inpainting_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(sd.inpainting, "load_unet", lambda base, **options: asked.append((base, options)))
    load_inpainting_unet(DEFAULT_BASE, **CPU)
    assert asked == [(INPAINTING_BASE, {**CPU, "in_channels": 9, "folder": "unet", "precise": ()})]


# --- holes ---

def holes(*data: Path, **options: object) -> HoleDataset:
    settings = {"resolution": 64, "load_masks": True, **options}
    return load_holes(DataConfig([str(path) for path in data], **settings))


def test_holes_hold_the_damage_and_good_images_have_some_too(tmp_path: Path) -> None:
    dataset = holes(make_product(tmp_path / "part"))
    seen = set()
    for index, item in enumerate(dataset.items):
        for epoch in range(3):
            example = dataset[epoch, index]
            mask, hole = example["mask"], example["hole"]
            assert hole.shape == (1, 64, 64) and hole.dtype == torch.float32 and 0 < hole.mean() < 0.9
            assert (hole >= mask).all() and set(hole.unique().tolist()) <= {0.0, 1.0}
            assert (mask.sum() == 0) == (dataset.classes[item.class_id] == "good")
            assert torch.equal(dataset.example(index, epoch)["hole"], hole)
            seen.add(hole.numpy().tobytes())
    assert len(seen) == 3 * len(dataset)  # jittered anew each epoch


def test_holes_vary_without_augmentation(tmp_path: Path) -> None:
    dataset = holes(make_product(tmp_path / "part"), augment=False)
    first, second = dataset[0, 0], dataset[1, 0]
    assert dataset.varies and torch.equal(first["image"], second["image"])
    assert not torch.equal(first["hole"], second["hole"])


def test_good_photos_alone_have_holes(tmp_path: Path) -> None:
    assert holes(make_product(tmp_path / "part", ("good",)))[0, 0]["hole"].any()


def test_each_class_of_an_image_has_its_own_hole(tmp_path: Path) -> None:
    dataset = holes(make_flat(tmp_path / "DS-DAGM", [(1, 3)]), augment=False, resolution=128)
    crush, scratch = (dataset[0, index] for index in (0, 1))
    assert dataset.classes == ["crush", "scratch"] and (crush["mask"] * scratch["mask"]).sum() == 0
    for one, other in ((crush, scratch), (scratch, crush)):
        assert (one["hole"] * one["mask"]).sum() == one["mask"].sum() > (one["hole"] * other["mask"]).sum()


def test_masks_of_few_cells_are_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_product(tmp_path / "part", ("crack", "good"))
    mask = np.zeros((96, 96), np.uint8)
    mask[40, 40] = 1
    save(tmp_path / "part/mask/crack/001_mask.png", mask)
    dataset = holes(tmp_path / "part")
    [line] = capsys.readouterr().err.splitlines()
    assert "001_mask.png: covers 1 latent cells at 64 px" in line
    assert all(latent_mask(dataset[epoch, 1]["mask"][None]).sum() >= 1 for epoch in range(8))


# --- the step ---

def test_the_hole_is_grey_and_the_rest_is_the_image() -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8)).eval()
    image, hole = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 64, 64)
    hole[..., 20:30, 20:30] = 1
    config = train_inpaint.Config(["x"], precision="fp32")
    seen = train_inpaint.encode(config, vae, {"image": image, "hole": hole})
    grey = image.clone()
    grey[..., 20:30, 20:30] = 0
    with torch.no_grad():
        torch.testing.assert_close(seen["masked_mean"], vae.posterior(grey)[0])
        torch.testing.assert_close(seen["mean"], vae.posterior(image)[0])
    assert seen["cells"].sum() == 4 and seen["cells"][0, 0, 2:4, 2:4].all()


class Zero(torch.nn.Module):
    """A UNet that predicts no noise, but a hundredfold of it in the left half."""

    dtype, fast = torch.float32, True

    def forward(self, z: torch.Tensor, *others: object) -> torch.Tensor:
        eps_hat = torch.zeros(len(z), 4, 8, 8)
        eps_hat[..., :4] = 100
        return eps_hat


def test_defect_weight_is_a_mean_over_the_hole_whatever_its_size() -> None:
    config = train_inpaint.Config(["x"], resolution=64, precision="fp32")
    cells = torch.zeros(2, 1, 8, 8)
    cells[0, 0, 2, 6] = 1  # one cell on the right
    cells[1, 0, 2, 0] = 1  # and on the left, where the error is great
    latents = {name: torch.zeros(2, 4, 8, 8) for name in ("mean", "std", "masked_mean", "masked_std")}
    batch = {**latents, "cells": cells, "epoch": [0, 0], "item": [0, 1], "class_id": torch.tensor([0, 0])}

    def loss(weight: float) -> list[float]:
        chosen = dataclasses.replace(config, defect_weight=weight)
        return train_inpaint.diffusion_loss(chosen, Zero(), ClassContext(1, 4), batch).tolist()

    plain, hole, half = loss(0), loss(1), loss(0.5)
    assert 4900 < plain[0] < 5100 and 4900 < plain[1] < 5100
    assert hole[0] < 10 and 9000 < hole[1] < 11000
    assert half == pytest.approx([(plain[i] + hole[i]) / 2 for i in (0, 1)])


# --- runs ---

def test_a_run_and_its_folder(place: Place, nine: Path) -> None:
    outcome = train(place.data, nine, "--epochs", 2, "--preview-every", 2, "--preview-steps", 2)
    assert outcome.status == 0 and "12 images: broken_large 3" in outcome.out, outcome
    run = Path("runs/bottle-inpaint")
    assert "sample.py" in outcome.out and str(run) in outcome.out
    with safe_open(run / "adapter.safetensors", "pt") as file:
        header = json.loads(file.metadata()["adapter"])
    assert header["kind"] == "inpaint" and header["config"]["defect_weight"] == 0
    tensors = load_file(run / "adapter.safetensors")
    assert "unet.conv_in.weight" not in tensors and any("lora_B" in key for key in tensors)
    assert all(0.3 < row["loss"] < 3 for row in rows(run / "metrics.jsonl")[1:])
    with Image.open(run / "previews/epoch_0002.png") as preview:
        assert preview.width > 6 * 64 and preview.height > 4 * 64


def test_a_widened_base_learns_to_see_the_mask(place: Place) -> None:
    outcome = train(place.data, place.base, "--max-steps", 3, "--out", "run", "--lr", 0.01)
    assert outcome.status == 0 and "four input channels" in outcome.err
    weight = load_file("run/adapter.safetensors")["unet.conv_in.weight"]
    assert weight.shape == (16, 9, 3, 3) and weight.dtype == torch.float32
    assert (weight[:, 4:].abs().amax(dim=(0, 2, 3)) > 1e-3).all()


VARIANTS = {
    "recipe": (),
    "defect weight, ema, null class": ("--defect-weight", 0.5, "--ema", 0.9, "--class-dropout", 0.5),
    "encoded at every step, a worker": ("--latent-variants", 0, "--workers", 1),
}


@pytest.mark.parametrize("widened", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_stopped_and_continued_is_the_same_to_the_last_bit(name: str, widened: bool, place: Place, nine: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    base = place.base if widened else nine
    for folder, stops in (("once", (5,)), ("twice", (2, 5))):
        Path(folder).mkdir()
        monkeypatch.chdir(folder)
        for stop in stops:
            outcome = train(place.data, base, "--out", "run", *VARIANTS[name], "--max-steps", stop)
            assert outcome.status == 0, outcome
        monkeypatch.chdir("..")
    for file in ("adapter.safetensors", "resume.safetensors"):
        assert Path("once/run", file).read_bytes() == Path("twice/run", file).read_bytes(), file


def test_mistakes(place: Place, nine: Path, tmp_path: Path) -> None:
    assert train(place.data, nine, "--no-load-masks").failed_with("--no-load-masks")
    assert train(place.data, nine, "--defect-weight", 2).failed_with("--defect-weight")
    write_demo(tmp_path / "bottle", 1, 0, size=64)
    (tmp_path / "bottle/mask/contamination/000_mask.png").unlink()
    assert train(tmp_path / "bottle", nine).failed_with("contamination/000.png", "no mask")
    save(tmp_path / "bottle/mask/contamination/000_mask.png", np.zeros((64, 64), np.uint8))
    assert train(tmp_path / "bottle", nine).failed_with("contamination/000_mask.png", "empty")
    assert not Path("runs").exists()
