"""train_inpaint.py as a person runs it, and what it learns from: holes, latent masks, widened bases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import CPU, UNET, Outcome, Place, command, rows, write_base
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from trees import make_flat, make_product, save

import sd.pretrained.inpainting
import train_inpaint
from data import DataConfig
from dataset.masks import latent_mask
from sampling.generation import inpaint_images
from sd.inpainting import UNetInPicture, widen
from sd.pretrained.inpainting import load_inpainting_unet
from sd.pretrained.weights import DEFAULT_BASE, INPAINTING_BASE, load_vae
from sd.samplers import Diffusion
from sd.unet import UNet
from tiny.demo import write_demo
from training.diffusion import per_image_loss
from training.holes import HoleDataset, load_holes


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with an inpainting UNet of its own."""
    return write_base(tmp_path_factory.mktemp("nine") / "base", inpainting=True)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(product: Path, base: Path, *arguments: object) -> Outcome:
    return command(train_inpaint.main, "--data", product, "--base", base, "--resolution", 64,
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
    monkeypatch.setattr(sd.pretrained.inpainting, "load_unet",
                        lambda base, **options: asked.append((base, options)))
    load_inpainting_unet(DEFAULT_BASE, **CPU)
    assert asked == [(INPAINTING_BASE, {**CPU, "in_channels": 9, "folder": "unet", "precise": ()})]


# --- holes ---

def holes(*products: Path, **options: object) -> HoleDataset:
    settings = {"resolution": 64, "load_masks": True, **options}
    return load_holes(DataConfig([str(path) for path in products], **settings))


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


def test_masks_of_few_cells_are_named(tmp_path: Path) -> None:
    make_product(tmp_path / "part", ("crack", "good"))
    mask = np.zeros((96, 96), np.uint8)
    mask[40, 40] = 1
    save(tmp_path / "part/mask/crack/001_mask.png", mask)
    dataset = holes(tmp_path / "part")
    [line] = dataset.warnings()
    assert "001_mask.png: covers 1 latent cells at 64 px" in line
    assert all(latent_mask(dataset[epoch, 1]["mask"][None]).sum() >= 1 for epoch in range(8))


def test_previews_paint_damage_into_photos_of_its_own_product(place: Place, nine: Path, tmp_path: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Two products, told apart by their light; one of them has no undamaged photo."""
    for product, light, damages in (("dark", 20, ("crack", "good")), ("light", 220, ("dent", "scratch"))):
        make_product(tmp_path / product, damages)
        for file in (tmp_path / product / "image").rglob("*.png"):
            save(file, np.full((96, 96, 3), light, np.uint8))
    seen = {}

    def record(unet: object, vae: object, contexts: object, wanted: list, image: torch.Tensor,
               *others: object) -> torch.Tensor:
        seen[wanted[0][0]] = image.mean().item()
        return inpaint_images(unet, vae, contexts, wanted, image, *others)

    monkeypatch.setattr(train_inpaint, "inpaint_images", record)
    outcome = command(train_inpaint.main, "--data", tmp_path / "dark", tmp_path / "light", "--base", nine,
                      "--resolution", 64, "--latent-variants", 0, "--preview-every", 1, "--preview-steps", 1,
                      "--no-validate", "--max-steps", 1, "--batch-size", 1, "--no-augment", "--out", "run")
    assert outcome.status == 0, outcome
    assert seen.keys() == {"dark/crack", "dark/good", "light/dent", "light/scratch"}
    assert all((light > 0) is name.startswith("light/") for name, light in seen.items())


# --- the step ---

def test_the_hole_is_grey_and_the_rest_is_the_image(place: Place, nine: Path) -> None:
    """In the cache of latents: what the model sees around the hole, and where it is to paint."""
    assert train(place.data, nine, "--max-steps", 1, "--out", "run", "--latent-variants", 1).status == 0
    file, = Path("latents").rglob("*.safetensors")
    cached, vae = load_file(file), load_vae(str(nine), **CPU)
    dataset = holes(place.data)
    for index in (0, 5, 11):
        example = dataset[0, index]
        image, hole = example["image"][None], example["hole"][None]
        grey = torch.where(hole == 1, 0, image)
        with torch.no_grad():
            torch.testing.assert_close(cached["mean"][index], vae.posterior(image)[0][0])
            torch.testing.assert_close(cached["masked_mean"][index], vae.posterior(grey)[0][0])
        cells = torch.nn.functional.max_pool2d(hole, 8)
        assert torch.equal(cached["cells"][index], cells[0]) and cells.any()


def test_defect_weight_is_a_mean_over_the_hole_whatever_its_size() -> None:
    eps, eps_hat = torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, 8)
    eps_hat[..., :4] = 100  # wrong in the left half alone
    hole, t = torch.zeros(3, 1, 8, 8), torch.tensor([0, 500, 999])
    hole[0, 0, 2, 6] = 1  # one cell on the right, one on the left, none
    hole[1, 0, 2, 0] = 1

    def loss(weight: float) -> list[float]:
        return per_image_loss(eps_hat, eps, t, hole=hole, weight=weight).tolist()

    assert loss(0) == [5000, 5000, 5000] == per_image_loss(eps_hat, eps, t).tolist()
    assert loss(1) == [0, 10000, 0] and loss(0.5) == [2500, 7500, 2500]


def test_min_snr_weights_timesteps_of_little_noise_less() -> None:
    """min(SNR, gamma) / SNR with SNR = abar / (1 - abar); the hole's share is weighted alike."""
    eps, eps_hat, t = torch.zeros(3, 4, 8, 8), torch.ones(3, 4, 8, 8), torch.tensor([0, 200, 999])
    abar = Diffusion().abar.double()[t]
    snr = abar / (1 - abar)
    expected = torch.minimum(snr, torch.tensor(5.0)) / snr
    assert snr[0] > 1000 and snr[2] < 0.01 and expected[2] == 1
    for hole, weight in ((None, 0.0), (torch.ones(3, 1, 8, 8), 0.5)):
        found = per_image_loss(eps_hat, eps, t, 5, hole, weight)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)


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
