"""The exact shortcuts against the plain way: the same numbers, and nothing kept that need not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bases import UNET, Place, command, place
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import lora
import sample
import train_class
from sd import layers
from sd.layers import set_fast
from sd.lean import frozen_conv2d, recomputed
from sd.unet import UNet

__all__ = ["place"]


def kept(work: object) -> list[Tensor]:
    """What `work` keeps for its backward pass."""
    tensors: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: tensors.append(x) or x, lambda x: x):
        work()
    return tensors


# ---- one layer

@settings(max_examples=30, deadline=None)
@given(side=st.tuples(st.integers(3, 9), st.integers(3, 9)), kernel=st.sampled_from([1, 2, 3]),
       stride=st.integers(1, 3), padding=st.integers(0, 2), bias=st.booleans())
def test_a_frozen_convolution_gives_autograds_gradient(side: tuple[int, int], kernel: int, stride: int,
                                                       padding: int, bias: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 4, kernel, kernel, generator=rng, dtype=torch.float64)
    b = torch.randn(5, generator=rng, dtype=torch.float64) if bias else None
    x = torch.randn(2, 4, *side, generator=rng, dtype=torch.float64, requires_grad=True)
    ours = frozen_conv2d(x, weight, b, (stride, stride), (padding, padding))
    theirs = F.conv2d(x, weight, b, stride, padding)
    assert torch.equal(ours, theirs)
    gradient = torch.randn(ours.shape, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)))


def test_a_convolution_keeps_its_input_only_where_it_learns() -> None:
    conv, x = layers.Conv2d(3, 5, 3), torch.randn(1, 3, 8, 8, requires_grad=True)
    assert any(tensor is x for tensor in kept(lambda: conv(x)))
    conv.requires_grad_(False)
    assert [tensor.shape for tensor in kept(lambda: conv(x))] == [conv.weight.shape]
    conv.fast = False
    assert any(tensor is x for tensor in kept(lambda: conv(x)))


@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_recomputed_gets_the_same_gradients(autocast: bool) -> None:
    results = []
    for work in (recomputed, lambda f, *inputs: f(*inputs)):
        torch.manual_seed(0)
        x, weight, frozen = (torch.randn(6, 6, requires_grad=learns) for learns in (True, True, False))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = work(lambda x, w, c: (x @ w).sigmoid().square() @ c, x, weight, frozen)
        y.float().square().sum().backward()
        assert frozen.grad is None
        results.append((y, x.grad, weight.grad))
    assert results[0][0].dtype == (torch.bfloat16 if autocast else torch.float32)
    assert all(map(torch.equal, *results))


def test_what_is_recomputed_keeps_its_inputs_alone() -> None:
    norm, x = layers.GroupNorm(2, 4), torch.randn(1, 4, 8, 8, requires_grad=True)
    assert {tensor.shape for tensor in kept(lambda: norm.silu(x))} == {x.shape, norm.weight.shape}
    assert len(kept(lambda: norm.silu(x))) == 3
    gate, x = layers.GEGLU(4, 8).requires_grad_(False), torch.randn(7, 4, requires_grad=True)
    assert sorted(tensor.numel() for tensor in kept(lambda: gate(x))) == [64, 7 * 16]  # a weight, both halves


# ---- the UNet

def step(fast: bool, dtype: torch.dtype, tokens: int, dropout: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Prediction and adapters' gradients of a small UNet; the plain way is torch's autocast."""
    torch.manual_seed(0)
    unet = UNet(UNET).to(dtype).train()
    weights = lora.inject(unet, rank=4, dropout=dropout)
    for B in weights[1::2]:
        nn.init.normal_(B, std=0.1)
    set_fast(unet, fast)
    z_t, context = torch.randn(2, 4, 8, 8), torch.randn(2, tokens, UNET.cross_attention_dim)
    with torch.autocast("cpu", dtype, enabled=not fast and dtype != torch.float32):
        eps_hat = unet(z_t, torch.tensor([3, 900]), context)
    assert eps_hat.dtype == dtype
    eps_hat.float().square().mean().backward()
    return eps_hat, {name: weight.grad for name, weight in unet.named_parameters() if weight.requires_grad}


def away(step: tuple[Tensor, dict[str, Tensor]], exact: tuple[Tensor, dict[str, Tensor]]) -> float:
    """How far a step's gradients, all together, are from the exact ones, relative to these."""
    pairs = [(step[1][name], gradient) for name, gradient in exact[1].items() if gradient is not None]
    wrong = sum((gradient - right).double().square().sum() for gradient, right in pairs)
    return (wrong / sum(right.double().square().sum() for _, right in pairs)).sqrt().item()


@pytest.mark.parametrize(("tokens", "dropout"), [(1, 0.0), (2, 0.3)])
def test_fast_and_plain_are_the_same_step(tokens: int, dropout: float) -> None:
    fast, plain = (step(fast, torch.float32, tokens, dropout) for fast in (True, False))
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-5, atol=1e-5)
    assert away(plain, fast) < 1e-5
    without = [name for name, gradient in fast[1].items() if gradient is None]
    assert bool(without) == (tokens == 1)  # there the plain way computes zeros, but for rounding
    largest = max(gradient.norm() for gradient in plain[1].values())
    assert all(plain[1][name].norm() < 1e-5 * largest for name in without)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_in_half_precision_it_rounds_no_worse_than_torchs_autocast(dtype: torch.dtype,
                                                                   tolerance: float) -> None:
    exact = step(True, torch.float32, 2, 0.3)
    fast, plain = (step(fast, dtype, 2, 0.3) for fast in (True, False))
    assert all(gradient.dtype == torch.float32 for gradient in fast[1].values())
    assert away(fast, exact) < min(tolerance, 1.5 * away(plain, exact))


# ---- the commands

def drawn(folder: str) -> np.ndarray:
    files = sorted(Path(folder, "image").rglob("*.png"))
    return np.stack([np.asarray(Image.open(file), np.float64) for file in files]) / 255


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_same_steps_and_seeds_give_the_same_images(tokens: int, place: Place, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """All exact shortcuts on and off, in training and in drawing: within 1e-3, and a rounding to 8 bits."""
    monkeypatch.chdir(tmp_path)
    for name, fast in (("fast", ()), ("plain", ("--no-fast",))):
        common = ("--data", place.data, "--base", place.base, "--resolution", 64, "--no-validate",
                  "--preview-every", 0, "--class-dropout", 0.5, "--lr", 1e-2)
        outcome = command(train_class.main, *common, "--max-steps", 4, "--out", name,
                          "--tokens-per-class", tokens, *fast)
        assert outcome.status == 0, outcome
        outcome = command(sample.main, "--ckpt", name, "--out", f"{name} images", "--per-class", 1,
                          "--steps", 5, "--guidance", 3, *fast)
        assert outcome.status == 0, outcome
    fast, plain = drawn("fast images"), drawn("plain images")
    assert fast.std() > 0.05 and np.abs(fast - plain).max() <= 1e-3 + 1 / 255
    tensors = [lora_file.read_bytes() for lora_file in (Path("fast/adapter.safetensors"),
                                                        Path("plain/adapter.safetensors"))]
    assert tensors[0] != tensors[1]  # else there was nothing to compare
