"""The latent cache through train_class.py: exact where it claims to be, kept, remade and told apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bases import Outcome, Place, command, rows, write_base
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from trees import spoil

import train_class
from sd.pretrained.weights import load_vae
from sd.vae import VAE
from training import latents


def train(place: Place, *arguments: object) -> Outcome:
    return command(train_class.main, "--data", place.data, "--base", place.base, "--resolution", 64,
                   "--preview-every", 0, "--out", "run", *arguments)


def losses(place: Place, *arguments: object) -> list[float]:
    assert train(place, "--restart", *arguments).status == 0
    return [row["loss"] for row in rows(Path("run/metrics.jsonl"))[1:]]


def trained() -> dict[str, Tensor]:
    return load_file("run/adapter.safetensors")


def caches() -> list[Path]:
    return sorted(Path("latents").iterdir())


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A one for each image encoded, which is done one by one, for little memory."""
    ones, posterior = [], VAE.posterior

    def counting(self: VAE, image: Tensor) -> tuple[Tensor, Tensor]:
        assert len(image) == 1
        ones.append(1)
        return posterior(self, image)

    monkeypatch.setattr(VAE, "posterior", counting)
    return ones


def test_with_a_variant_for_each_epoch_it_is_the_uncached_training(place: Place, encoded: list[int]) -> None:
    every_step = losses(place, "--epochs", 3, "--latent-variants", 0)
    assert sum(encoded) == 3 * 12 and not Path("latents").exists()
    once = losses(place, "--epochs", 3)
    assert sum(encoded) == 2 * 3 * 12
    assert once == pytest.approx(every_step, rel=1e-5)
    assert losses(place, "--epochs", 3) == once  # from disk
    assert sum(encoded) == 2 * 3 * 12


def test_close_views_are_cached_exactly_and_apart(place: Place, encoded: list[int]) -> None:
    every_step = losses(place, "--epochs", 2, "--view", "close", "--latent-variants", 0)
    assert losses(place, "--epochs", 2, "--view", "close") == pytest.approx(every_step, rel=1e-5)
    assert losses(place, "--epochs", 2) != pytest.approx(every_step, rel=1e-4)
    assert len(caches()) == 2 and sum(encoded) == 3 * 2 * 12
    assert train(place, "--epochs", 3, "--view", "close").failed_with("--view was whole, is close")


def test_epochs_take_turns_and_noise_does_not_repeat(place: Place, encoded: list[int]) -> None:
    two = losses(place, "--epochs", 4, "--latent-variants", 2)
    assert sum(encoded) == 2 * 12 and len(set(two)) == len(two)
    assert losses(place, "--epochs", 4, "--latent-variants", 4)[:6] == two[:6]
    assert sum(encoded) == 4 * 12  # the first two variants were there
    assert losses(place, "--epochs", 4, "--latent-variants", 4)[6:] != two[6:]


def test_without_augmentation_one_variant_is_all(place: Place, encoded: list[int]) -> None:
    cached = losses(place, "--epochs", 3, "--no-augment")
    assert sum(encoded) == 12
    assert cached == pytest.approx(losses(place, "--epochs", 3, "--no-augment", "--latent-variants", 0),
                                   rel=1e-5)


def test_only_what_the_steps_need_is_encoded(place: Place, encoded: list[int]) -> None:
    assert train(place, "--max-steps", 4).status == 0  # 3 steps an epoch
    assert sum(encoded) == 2 * 12
    outcome = train(place, "--max-steps", 7)
    assert outcome.status == 0 and outcome.err.count("encoding 12 images, once in each of 25 variants") == 1
    assert sum(encoded) == 3 * 12


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
def test_a_run_goes_on_exactly_with_its_cache_remade(harm: str, place: Place) -> None:
    losses(place, "--max-steps", 7, "--latent-variants", 2)
    expected = trained()
    losses(place, "--max-steps", 4, "--latent-variants", 2)
    for file in caches()[0].iterdir():
        spoil(file, 0.7) if harm == "damaged" else file.unlink()
    assert train(place, "--max-steps", 7, "--latent-variants", 2, "--workers", 1).status == 0
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trained().items())


def test_interrupted_while_encoding(place: Place, encoded: list[int],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = VAE.posterior

    def until(self: VAE, image: Tensor) -> tuple[Tensor, Tensor]:
        if len(encoded) == 15:
            raise KeyboardInterrupt
        return posterior(self, image)

    with monkeypatch.context() as patch:
        patch.setattr(VAE, "posterior", until)
        assert train(place, "--epochs", 2).status == 130
    assert [file.name for file in caches()[0].iterdir()] == ["0000.safetensors"]
    encoded.clear()
    assert train(place, "--epochs", 2).status == 0 and sum(encoded) == 12


def test_a_refused_run_encodes_nothing(place: Place, encoded: list[int]) -> None:
    losses(place, "--max-steps", 1)
    encoded.clear()
    assert train(place, "--max-steps", 1, "--orientation", "fixed").failed_with("--orientation was any")
    assert train(place, "--max-steps", 1, "--latent-variants", 3).failed_with("--latent-variants was 25")
    assert not encoded


def test_what_makes_another_cache_and_what_does_not(place: Place, tmp_path: Path) -> None:
    def made(*arguments: object) -> int:
        before = len(caches()) if Path("latents").exists() else 0
        losses(place, "--max-steps", 1, *arguments)
        return len(caches()) - before

    assert made() == 1
    shutil.copytree(place.data, tmp_path / "data")
    shutil.copytree(place.base, tmp_path / "base")
    for flags in (("--data", tmp_path / "data"), ("--base", tmp_path / "base"), ("--latent-variants", 7),
                  ("--rank", 2), ("--batch-size", 2)):
        assert made(*flags) == 0, flags
    for flags in (("--orientation", "fixed"), ("--resolution", 128), ("--seed", 7), ("--no-augment",),
                  ("--base", write_base(tmp_path / "other base", seed=1))):
        assert made(*flags) == 1, flags
    photo = tmp_path / "data/image/good/000.png"
    pixels = np.asarray(Image.open(photo)).copy()
    pixels[0, 0] ^= 255
    Image.fromarray(pixels).save(photo)
    assert made("--data", tmp_path / "data") == 1


def test_half_precision_encodes_in_half() -> None:
    vae = load_vae("tiny", device="cpu", dtype=torch.float32)
    image = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    exact, half = (latents.posterior(vae, image, precision) for precision in ("fp32", "bf16"))
    for full, rounded in zip(exact, half, strict=True):
        error = (full - rounded).norm() / full.norm()
        assert rounded.dtype == torch.float32 and 0 < error < 0.02, error
