"""sd/unet.py against diffusers' UNet2DConditionModel: the same weights, the same numbers and gradients."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import SMALL, TINY, no_module_changes_its_inputs, relative_error, settings_of, twin_unets
from published import UNET_JSON
from torch import Tensor, nn

from sd.exact_shortcuts import FixedContext
from sd.layers import timestep_embedding
from sd.unet import UNet, UNetConfig

INPAINTING = dataclasses.replace(SMALL, in_channels=9)
CONFIGS = pytest.mark.parametrize("config", [SMALL, INPAINTING, TINY], ids=["small", "inpainting", "tiny"])
TIMESTEPS = torch.tensor([0, 500, 999])  # one each for the three images of a batch

twins = functools.cache(twin_unets)


def inputs_for(config: UNetConfig, length: int, height: int = 16, width: int = 8) -> tuple[Tensor, ...]:
    """z_t, t and a context of `length` tokens, for three images."""
    rng = torch.Generator().manual_seed(length)
    z_t = torch.randn(3, config.in_channels, height, width, generator=rng)
    return z_t, TIMESTEPS, torch.randn(3, length, config.cross_attention_dim, generator=rng)


def gradients(module: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The gradients of all weights, of z_t and of the context."""
    z_t, t, context = inputs[0].clone().requires_grad_(), inputs[1], inputs[2].clone().requires_grad_()
    module.zero_grad()
    eps_hat = module(z_t, t, context)
    (eps_hat if isinstance(eps_hat, Tensor) else eps_hat.sample).square().sum().backward()
    return {name: weight.grad for name, weight in module.named_parameters()} | {
        "z_t": z_t.grad, "context": context.grad}


# ---- the numbers

@CONFIGS
@pytest.mark.parametrize("length", [1, 4, 77])
@pytest.mark.parametrize("size", [(8, 8), (16, 40)])
@torch.no_grad()
def test_equals_diffusers(config: UNetConfig, length: int, size: tuple[int, int]) -> None:
    ours, theirs = twins(config)
    inputs = inputs_for(config, length, *size)
    assert relative_error(ours(*inputs), theirs(*inputs).sample) <= 1e-5


@settings(max_examples=15, deadline=None)
@given(widths=st.lists(st.integers(1, 4), min_size=2, max_size=4), layers=st.integers(1, 3),
       heads=st.sampled_from([1, 2, 4, 8]), groups=st.sampled_from([2, 8]), length=st.integers(1, 9))
@torch.no_grad()
def test_equals_diffusers_in_any_form(widths: list[int], layers: int, heads: int, groups: int,
                                      length: int) -> None:
    config = UNetConfig(block_out_channels=tuple(8 * width for width in widths), layers_per_block=layers,
                        cross_attention_dim=12, attention_head_dim=heads, norm_num_groups=groups)
    ours, theirs = (twin.double() for twin in twin_unets(config))  # some narrow ones magnify rounding
    z_t, t, context = inputs_for(config, length)
    inputs = (z_t.double(), t, context.double())
    assert relative_error(ours(*inputs), theirs(*inputs).sample) <= 1e-9


@torch.no_grad()
def test_equals_diffusers_in_half_precision() -> None:
    """bf16 rounds ours about as theirs. With sinusoids in bf16 it would not: it knows no 999, only 1000."""
    ours, theirs = twin_unets(SMALL)
    z_t, t, context = inputs_for(SMALL, 4)
    exact = theirs(z_t, t, context).sample
    inputs = (z_t.bfloat16(), t, context.bfloat16())
    errors = [(eps_hat.float() - exact).norm() / exact.norm()
              for eps_hat in (ours.bfloat16()(*inputs), theirs.bfloat16()(*inputs).sample)]
    assert errors[0] < 1.5 * errors[1] < 0.03  # 0.05 or more with sinusoids in bf16


@pytest.mark.parametrize("width", [320, 24])
def test_timestep_embedding(width: int) -> None:
    t = torch.arange(1000)
    theirs = get_timestep_embedding(t, width, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(timestep_embedding(t, width), theirs)


# ---- gradients, and checkpointing

@CONFIGS
def test_gradients_equal_diffusers(config: UNetConfig) -> None:
    ours, theirs = twins(config)
    inputs = inputs_for(config, 4)
    expected = gradients(theirs, inputs)
    actual = gradients(ours, inputs)
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        assert relative_error(gradient, expected[name]) <= 1e-5, name


@CONFIGS
def test_checkpointing_changes_no_gradient(config: UNetConfig) -> None:
    unet, _ = twins(config)
    inputs = inputs_for(config, 4)
    calls = []
    hook = unet.mid_block.resnets[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    expected = gradients(unet, inputs)
    assert len(calls) == 1
    unet.checkpointing = True
    try:
        actual = gradients(unet, inputs)
        assert len(calls) == 3  # once more in the backward pass
        with torch.no_grad():
            unet(*inputs)
        assert len(calls) == 4  # without gradients there is nothing to recompute
    finally:
        unet.checkpointing = False
        hook.remove()
    for name, gradient in actual.items():
        assert torch.equal(gradient, expected[name]), name


# ---- what is left out because it is known already

@CONFIGS
@pytest.mark.parametrize("training", [False, True])
def test_one_token_gets_diffusers_gradients(config: UNetConfig, training: bool) -> None:
    """No query and no key is computed. With attention in full these get nothing but rounding."""
    ours, theirs = twins(config)
    inputs = inputs_for(config, 1)
    expected = gradients(theirs, inputs)
    actual = gradients(ours.train(training), inputs)
    ours.eval()
    for name, gradient in expected.items():
        if re.search(r"attn2\.to_[qk]|transformer_blocks\.0\.norm2", name):
            assert actual[name] is None and gradient.abs().max() < 1e-4 * expected["context"].abs().max()
        else:
            assert relative_error(actual[name], gradient) <= 1e-5, name


@CONFIGS
@pytest.mark.parametrize("length", [1, 4])
@torch.no_grad()
def test_sampling_computes_nothing_twice_and_the_same(config: UNetConfig, length: int) -> None:
    """Guided halves: the same latents and timestep, several contexts in a row, which stay for all steps."""
    ours, theirs = twins(config)
    z_t, _, context = inputs_for(config, length)
    contexts = torch.cat([context, 2 * context, -context])
    calls = Counter()
    hooks = [module.register_forward_pre_hook(
        lambda module, inputs, name=name: calls.update({name: len(inputs[0])}))
        for name, module in ours.named_modules() if name.endswith(("to_k", "conv_in", "conv_out"))]
    fixed = FixedContext(contexts)
    for t in (981, 1):
        expected = theirs(torch.cat([z_t] * 3), t, contexts).sample
        assert relative_error(ours(z_t, torch.tensor([t]), fixed), expected) <= 1e-5
        assert relative_error(ours(z_t, torch.tensor([t]), contexts), expected) <= 1e-5
    for hook in hooks:
        hook.remove()
    assert calls["conv_in"] == 4 * 3 and calls["conv_out"] == 4 * 9
    keys = {name: count for name, count in calls.items() if "attn2.to_k" in name}
    assert set(keys.values()) == ({3 * 9} if length > 1 else set())  # once fixed, and once in each step


# ---- control, and what blocks leave alone

def control_for(unet: UNet, z_t: Tensor, context: Tensor, scale: float) -> tuple[list[Tensor], Tensor]:
    """Residuals shaped as the skips and the middle block's output."""
    mid, skips = unet.encode(unet.conv_in(z_t), unet.embed_time(TIMESTEPS), context)
    rng = torch.Generator().manual_seed(0)
    skips, mid = ([scale * torch.randn(x.shape, generator=rng) for x in xs] for xs in (skips, [mid]))
    return skips, mid[0]


@CONFIGS
@torch.no_grad()
def test_control_is_added_where_diffusers_adds_it(config: UNetConfig) -> None:
    ours, theirs = twins(config)
    z_t, t, context = inputs_for(config, 4)
    skips, mid = control_for(ours, z_t, context, scale=1.0)
    expected = theirs(z_t, t, context, down_block_additional_residuals=skips,
                      mid_block_additional_residual=mid).sample
    actual = ours(z_t, t, context, control=(skips, mid))
    assert relative_error(actual, expected) <= 1e-5
    assert relative_error(ours(z_t, t, context), actual) > 1e-2  # it did something


@CONFIGS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_control_gets_diffusers_gradients(config: UNetConfig, checkpointing: bool) -> None:
    """They are what a ControlNet learns from; and those of z_t show that no skip was overwritten."""
    ours, theirs = twins(config)
    z_t, t, context = inputs_for(config, 4)
    with torch.no_grad():
        skips, mid = control_for(ours, z_t, context, scale=1.0)
    wanted = [x.requires_grad_() for x in (z_t, mid, *skips)]
    eps_hat = theirs(z_t, t, context, down_block_additional_residuals=skips,
                     mid_block_additional_residual=mid).sample
    expected = torch.autograd.grad(eps_hat.square().sum(), wanted)
    ours.checkpointing = checkpointing
    try:
        actual = torch.autograd.grad(ours(z_t, t, context, control=(skips, mid)).square().sum(), wanted)
    finally:
        ours.checkpointing = False
    for gradient, other in zip(actual, expected, strict=True):
        assert relative_error(gradient, other) <= 1e-5


@CONFIGS
@torch.no_grad()
def test_control_of_zeros_changes_nothing(config: UNetConfig) -> None:
    unet, _ = twins(config)
    z_t, t, context = inputs_for(config, 4)
    control = control_for(unet, z_t, context, scale=0.0)
    assert torch.equal(unet(z_t, t, context, control=control), unet(z_t, t, context))


def test_control_of_another_depth_is_refused() -> None:
    unet, _ = twins(SMALL)
    z_t, t, context = inputs_for(SMALL, 1)
    skips, mid = control_for(unet, z_t, context, scale=1.0)
    with pytest.raises(ValueError):
        unet(z_t, t, context, control=(skips[:-1], mid))


@CONFIGS
@torch.no_grad()
def test_no_block_changes_its_inputs(config: UNetConfig) -> None:
    """Checkpointing runs blocks again on the same inputs, and skips and control belong to their makers."""
    unet, _ = twins(config)
    z_t, t, context = inputs_for(config, 4)
    skips, mid = control_for(unet, z_t, context, scale=1.0)
    given_tensors = (z_t, t, context, mid, *skips)
    versions = [x._version for x in given_tensors]
    with no_module_changes_its_inputs(unet):
        unet(z_t, t, context, control=(skips, mid))
    assert [x._version for x in given_tensors] == versions


def test_what_no_tensor_shows_is_sd15s() -> None:
    """Heads and epsilons at full size: `attention_head_dim` 8 means 8 heads, of 40, 80 or 160 channels."""
    with torch.device("meta"):
        ours, theirs = UNet(), UNet2DConditionModel.from_config(UNET_JSON)
    assert settings_of(ours) == settings_of(theirs)
    assert {module.heads for module in ours.modules() if hasattr(module, "heads")} == {8}
