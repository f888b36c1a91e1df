"""At SD 1.5's own size, with random weights: equal to diffusers, and both commands from end to end."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import published
import pytest
import torch
from parity import relative_error, twin_unets, twin_vaes
from PIL import Image
from published import FP16, UNET_JSON, VAE_JSON

from benchmarks.timing import timed
from sd.unet import UNetConfig
from sd.vae import VAEConfig

# One group: one process runs them one after the other, for each takes gigabytes.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("full size")]


@pytest.fixture(autouse=True)
def memory_is_given_back() -> Iterator[None]:
    yield
    gc.collect()  # diffusers' modules hold references in circles


# ---- parity

@torch.no_grad()
def test_unet_equals_diffusers() -> None:
    ours, theirs = twin_unets(UNetConfig())
    rng = torch.Generator().manual_seed(0)
    z_t, t = torch.randn(1, 4, 32, 24, generator=rng), torch.tensor([321])
    for length in (1, 77):
        context = torch.randn(1, length, 768, generator=rng)
        assert relative_error(ours(z_t, t, context), theirs(z_t, t, context).sample) <= 1e-5


@torch.no_grad()
def test_vae_equals_diffusers() -> None:
    ours, theirs = twin_vaes(VAEConfig())
    image = torch.rand(1, 3, 128, 192, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = ours.posterior(image)
    posterior, scale = theirs.encode(image).latent_dist, 0.18215
    assert relative_error(mean, posterior.mean * scale) <= 1e-5
    assert relative_error(std, posterior.std * scale) <= 1e-5
    assert relative_error(ours.decode(mean), theirs.decode(mean / scale).sample) <= 1e-5


# ---- the commands

@pytest.fixture()
def base() -> Iterator[Path]:
    """A model as published, 2 GB in fp16. Not in tmp_path: pytest keeps three runs of that."""
    with tempfile.TemporaryDirectory() as folder:
        yield published.write_model(Path(folder), unet=UNET_JSON, vae=VAE_JSON, files=(FP16,))


def run(*command: str | Path) -> float:
    """Run one of our commands, which must succeed; its peak memory in GB."""
    return timed([*map(str, command)], lambda: 0).memory * 2**30 / 1e9


def test_training_and_sampling(base: Path, tmp_path: Path) -> None:
    """Two optimizer steps with a preview, then an image of two DDIM steps."""
    run("data.py", "demo", tmp_path / "bottle", "--per-class", "1")
    training = run("train_class.py", "--data", tmp_path / "bottle", "--base", base, "--out", tmp_path / "run",
                   "--resolution", "64", "--batch-size", "1", "--max-steps", "2", "--preview-steps", "1",
                   "--no-validate")
    sampling = run("sample.py", "--ckpt", tmp_path / "run", "--base", base, "--out", tmp_path / "drawn",
                   "--steps", "2", "--per-class", "1", "--classes", "good")
    assert (tmp_path / "run" / "adapter.safetensors").stat().st_size < 16e6
    assert list((tmp_path / "run" / "previews").glob("*.png"))
    assert Image.open(tmp_path / "drawn" / "image" / "good" / "000.png").size == (64, 64)
    assert max(training, sampling) < 8  # GB: the model is 3.8 in fp32, and at no time there twice


@pytest.mark.parametrize(("rank", "gigabytes"), [(0, 1.5), (32, 0.1)])
def test_training_a_controlnet(base: Path, rank: int, gigabytes: float) -> None:
    """Two optimizer steps over a class checkpoint, whole and as low-rank updates."""
    with tempfile.TemporaryDirectory() as folder:  # not in tmp_path: 7 GB
        data, class_run, control_run = (Path(folder, name) for name in ("bottle", "class", "control"))
        run("data.py", "demo", data, "--per-class", "1")
        flags = ("--data", data, "--batch-size", "1", "--preview-every", "0")
        run("train_class.py", *flags, "--base", base, "--resolution", "64", "--max-steps", "1",
            "--out", class_run)
        peak = run("train_controlnet.py", *flags, "--class-ckpt", class_run, "--base", base,
                   "--accumulate", "1", "--max-steps", "2", "--control-rank", str(rank), "--out", control_run)
        assert (control_run / "adapter.safetensors").stat().st_size < gigabytes * 1e9
    assert peak < 24
