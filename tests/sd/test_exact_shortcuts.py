"""The exact shortcuts against the plain way: the same numbers, and nothing kept that need not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bases import UNET, Place, command
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import lora
import sample
import train_class
from sd import layers
from sd.exact_shortcuts import Conv2d, Gated, Recomputed, pack, packed_bytes, set_checkpointing, set_fast
from sd.unet import UNet


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
    conv = Conv2d(4, 5, kernel, stride, padding, bias=bias, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(2, 4, *side, dtype=torch.float64, requires_grad=True)
    ours, theirs = conv(x), F.conv2d(x, conv.weight, conv.bias, stride, padding)
    torch.testing.assert_close(ours, theirs)
    gradient = torch.randn(ours.shape, dtype=torch.float64)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_keeps_its_input_only_where_it_learns(kernel: int) -> None:
    conv, x = Conv2d(3, 5, kernel), torch.randn(1, 3, 8, 8, requires_grad=True)

    def keeps_x() -> bool:
        return any(tensor.data_ptr() == x.data_ptr() for tensor in kept(lambda: conv(x)))

    assert keeps_x()
    conv.requires_grad_(False)
    assert not keeps_x()
    conv.fast = False
    assert keeps_x()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [1, 2])
def test_packed_weights_compute_the_same(stride: int, dtype: torch.dtype) -> None:
    """For any number of images, of any size, and for the gradient; small, pointwise and trained ones stay.

    Without a stride the same bits, but for single images of few pixels, which PyTorch takes other ways.
    """
    conv = Conv2d(72, 120, 3, stride, 1).to(dtype, memory_format=torch.channels_last).requires_grad_(False)
    others = [Conv2d(8, 8, 3), Conv2d(300, 300, 1), Conv2d(96, 96, 3)]
    for other in others[:2]:
        other.requires_grad_(False)
    model = nn.ModuleList([conv, *others])
    inputs = [torch.randn(b, 72, h, w).to(dtype, memory_format=torch.channels_last).requires_grad_()
              for b, h, w in ((2, 24, 24), (1, 32, 20), (5, 11, 17))]

    def results() -> list[Tensor]:
        found = []
        for x in inputs:
            y = conv(x)
            found += [y, *torch.autograd.grad(y.float().square().sum(), x)]
        return found

    expected = results()
    if not packed_bytes(model):
        pytest.skip("this CPU has no kernels of its own for that")
    assert packed_bytes(model) == conv.weight.nbytes
    pack(model, gradients=True)
    assert conv.weight is None and packed_bytes(model) == 0
    assert all(other.weight is not None for other in others)
    actual = results()
    if stride == 1:
        assert all(map(torch.equal, actual, expected))
    torch.testing.assert_close(actual, expected)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


def test_half_of_the_other_halfs_gelu() -> None:
    both, gradient = torch.randn(3, 5, 14, requires_grad=True), torch.randn(3, 5, 7)
    value, gate = both.chunk(2, dim=-1)
    for ours, theirs in ((Gated.apply(both), value * F.gelu(gate)), *zip(
            torch.autograd.grad(Gated.apply(both), both, gradient),
            torch.autograd.grad(value * F.gelu(gate), both, gradient), strict=True)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_what_is_recomputed_gets_the_same_gradients(autocast: bool) -> None:
    results = []
    for work in (Recomputed.apply, lambda f, *inputs: f(*inputs)):
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
    assert len([tensor for tensor in kept(lambda: norm.silu(x)) if tensor.shape == x.shape]) == 2
    set_checkpointing(norm, "lean")
    assert {tensor.shape for tensor in kept(lambda: norm.silu(x))} == {x.shape, norm.weight.shape}
    assert len(kept(lambda: norm.silu(x))) == 3
    gate, x = layers.GEGLU(4, 8).requires_grad_(False), torch.randn(7, 4, requires_grad=True)
    assert sorted(tensor.numel() for tensor in kept(lambda: gate(x))) == [64, 7 * 16]  # a weight, both halves


# ---- the UNet

def step(fast: bool, dtype: torch.dtype, tokens: int, dropout: float,
         checkpointing: str = "lean") -> tuple[Tensor, dict[str, Tensor]]:
    """Prediction and adapters' gradients of a small UNet; the plain way is torch's autocast."""
    torch.manual_seed(0)
    unet = UNet(UNET).to(dtype).train()
    weights = lora.inject(unet, rank=4, dropout=dropout)
    for B in weights[1::2]:
        nn.init.normal_(B, std=0.1)
    set_fast(unet, fast)
    set_checkpointing(unet, checkpointing)
    lora.seed_dropout(unet, [5, 6])
    z_t, context = torch.randn(2, 4, 32, 32), torch.randn(2, tokens, UNET.cross_attention_dim)
    with torch.autocast("cpu", dtype, enabled=not fast and dtype != torch.float32):
        eps_hat = unet(z_t, torch.tensor([3, 900]), context)
    assert eps_hat.dtype == dtype
    eps_hat.float().square().sum().backward()  # not the mean, whose gradients are too small for fp16
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2])
def test_what_is_computed_again_changes_no_bit(tokens: int, dtype: torch.dtype) -> None:
    expected = step(True, dtype, tokens, 0.3, "none")
    for checkpointing in ("lean", "full"):
        eps_hat, gradients = step(True, dtype, tokens, 0.3, checkpointing)
        assert torch.equal(eps_hat, expected[0])
        assert all(torch.equal(gradient, expected[1][name]) for name, gradient in gradients.items()
                   if gradient is not None)


def test_recomputed_blocks_leave_torchs_generator_alone() -> None:
    """It is not set back before they are computed again, so dropout needs keys."""
    unet = UNet(UNET).train()
    lora.inject(unet)
    set_checkpointing(unet, "full")
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 2, UNET.cross_attention_dim)
    with pytest.raises(ValueError, match="seed_dropout"):
        unet(*inputs)
    lora.seed_dropout(unet, [5, 6])
    before = torch.get_rng_state()
    unet(*inputs).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_in_half_precision_it_rounds_no_worse_than_torchs_autocast(dtype: torch.dtype,
                                                                   tolerance: float) -> None:
    exact = step(True, torch.float32, 2, 0.3)
    fast, plain = (step(fast, dtype, 2, 0.3) for fast in (True, False))
    assert all(gradient.dtype == torch.float32 for gradient in fast[1].values())
    assert away(fast, exact) < min(tolerance, 1.2 * away(plain, exact))


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
