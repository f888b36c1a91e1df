"""sd/vae.py against diffusers' AutoencoderKL with the same weights; the VAE owns the latents' scale."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import (
    SMALL_VAE,
    TINY_VAE,
    no_module_changes_its_inputs,
    relative_error,
    settings_of,
    twin_vaes,
)
from published import VAE_JSON
from torch import Tensor

from sd.vae import VAE, VAEConfig

CONFIGS = pytest.mark.parametrize("config", [SMALL_VAE, TINY_VAE], ids=["small", "tiny"])
SIZES = pytest.mark.parametrize("size", [(32, 32), (24, 64)])
SCALE = 0.18215  # AutoencoderKL knows it, but leaves multiplying and dividing by it to its callers

twins = functools.cache(twin_vaes)


def image(height: int, width: int) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@CONFIGS
@SIZES
@torch.no_grad()
def test_posterior_equals_diffusers(config: VAEConfig, size: tuple[int, int]) -> None:
    ours, theirs = twins(config)
    mean, std = ours.posterior(image(*size))
    posterior = theirs.encode(image(*size)).latent_dist
    assert mean.shape == (2, 4, size[0] // 8, size[1] // 8)
    assert relative_error(mean, posterior.mean * SCALE) <= 1e-5
    assert relative_error(std, posterior.std * SCALE) <= 1e-5


@CONFIGS
@torch.no_grad()
def test_encode_equals_diffusers_sample(config: VAEConfig) -> None:
    """Their sample draws from a generator what ours is given as `noise`."""
    ours, theirs = twins(config)
    noise = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(1))
    expected = theirs.encode(image(24, 64)).latent_dist.sample(torch.Generator().manual_seed(1)) * SCALE
    assert relative_error(ours.encode(image(24, 64), noise), expected) <= 1e-5


@CONFIGS
@SIZES
@torch.no_grad()
def test_decode_equals_diffusers(config: VAEConfig, size: tuple[int, int]) -> None:
    ours, theirs = twins(config)
    z_0 = torch.randn(2, 4, size[0] // 8, size[1] // 8, generator=torch.Generator().manual_seed(2))
    decoded = ours.decode(z_0)
    assert decoded.shape == (2, 3, *size)
    assert relative_error(decoded, theirs.decode(z_0 / SCALE).sample) <= 1e-5


def test_what_no_tensor_shows_is_sd15s() -> None:
    with torch.device("meta"):
        ours, theirs = VAE(), AutoencoderKL.from_config(VAE_JSON)
    assert settings_of(ours) == settings_of(theirs)


@settings(max_examples=15, deadline=None)
@given(widths=st.lists(st.integers(1, 4), min_size=4, max_size=4), layers=st.integers(1, 3),
       groups=st.sampled_from([2, 8]))
@torch.no_grad()
def test_equals_diffusers_in_any_form(widths: list[int], layers: int, groups: int) -> None:
    config = VAEConfig(block_out_channels=tuple(8 * width for width in widths), layers_per_block=layers,
                       norm_num_groups=groups)
    ours, theirs = twin_vaes(config)
    mean, _ = ours.posterior(image(16, 24))
    assert relative_error(mean, theirs.encode(image(16, 24)).latent_dist.mean * SCALE) <= 1e-5
    assert relative_error(ours.decode(mean), theirs.decode(mean / SCALE).sample) <= 1e-5


@pytest.mark.parametrize(("bias", "log_variance"), [(1000.0, 20.0), (-1000.0, -30.0)])
@torch.no_grad()
def test_log_variance_is_clamped_as_in_diffusers(bias: float, log_variance: float) -> None:
    ours, theirs = twin_vaes(SMALL_VAE)
    for vae in (ours, theirs):
        vae.quant_conv.bias = torch.nn.Parameter(torch.full((8,), bias))
    _, std = ours.posterior(image(32, 32))
    assert relative_error(std, theirs.encode(image(32, 32)).latent_dist.std * SCALE) <= 1e-5
    assert relative_error(std, torch.full_like(std, log_variance / 2).exp() * SCALE) <= 1e-5


@torch.no_grad()
def test_the_scale_stays_inside() -> None:
    """Other scaling factor, same weights: latents scaled by it, the same image from them."""
    ours, theirs = twins(SMALL_VAE)
    assert ours.config.scaling_factor == theirs.config.scaling_factor == SCALE
    half = VAE(dataclasses.replace(SMALL_VAE, scaling_factor=SCALE / 2)).eval()
    half.load_state_dict(ours.state_dict())
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    z_0, z_0_half = (vae.encode(image(32, 32), noise) for vae in (ours, half))
    assert torch.equal(z_0_half, z_0 / 2)
    assert torch.equal(half.decode(z_0_half), ours.decode(z_0))
    mean, std = ours.posterior(image(32, 32))
    assert torch.equal(z_0, mean + std * noise)
    assert torch.equal(ours.encode(image(32, 32), torch.zeros_like(noise)), mean)


@CONFIGS
@torch.no_grad()
def test_no_block_changes_its_inputs(config: VAEConfig) -> None:
    vae, _ = twins(config)
    x, noise = image(32, 32), torch.zeros(2, 4, 4, 4)
    with no_module_changes_its_inputs(vae):
        z_0 = vae.encode(x, noise)
        version = z_0._version
        vae.decode(z_0)
    assert (x._version, noise._version, z_0._version) == (0, 0, version)
