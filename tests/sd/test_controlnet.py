"""sd/controlnet.py against diffusers' ControlNetModel, alone and on the UNet; and a fresh one, on a copy."""

from __future__ import annotations

import dataclasses
import functools

import parity
import pytest
import torch
from diffusers import ControlNetModel
from parity import no_module_changes_its_inputs, relative_error, settings_of, twin_controlnets, twin_unets
from published import CONTROLNET_JSON, controlnet_shapes
from torch import Tensor

from sd.controlnet import ControlNet, ControlNetConfig, copy_encoder
from sd.exact_shortcuts import FixedContext
from sd.unet import UNet, UNetConfig

SMALL = ControlNetConfig(**vars(parity.SMALL), conditioning_embedding_out_channels=(4, 8, 12, 16))
TINY = ControlNetConfig(**vars(parity.TINY), conditioning_channels=5)
CONFIGS = pytest.mark.parametrize("config", [SMALL, TINY], ids=["small", "tiny"])

twins = functools.cache(twin_controlnets)


def unet_config(config: ControlNetConfig, in_channels: int = 4) -> UNetConfig:
    """The UNet that a ControlNet of `config` fits."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(UNetConfig)}
    return UNetConfig(**fields | {"in_channels": in_channels})


unets = functools.cache(lambda config: twin_unets(unet_config(config)))


def inputs_for(config: ControlNetConfig) -> tuple[Tensor, ...]:
    """z_t, t, context and condition of three images of 16 x 8 latents."""
    rng = torch.Generator().manual_seed(0)
    return (torch.randn(3, 4, 16, 8, generator=rng), torch.tensor([0, 500, 999]),
            torch.randn(3, 4, config.cross_attention_dim, generator=rng),
            torch.rand(3, config.conditioning_channels, 128, 64, generator=rng))


# ---- as published

def test_it_has_the_published_tensors() -> None:
    with torch.device("meta"):
        ours, theirs = ControlNet(), ControlNetModel.from_config(CONTROLNET_JSON)
    shapes = {name: tuple(tensor.shape) for name, tensor in ours.state_dict().items()}
    assert shapes == controlnet_shapes(CONTROLNET_JSON)
    assert (len(shapes), sum(tensor.numel() for tensor in ours.parameters())) == (340, 361_279_120)
    assert settings_of(ours) == settings_of(theirs)


@CONFIGS
@torch.no_grad()
def test_residuals_equal_diffusers(config: ControlNetConfig) -> None:
    ours, theirs = twins(config)
    inputs = inputs_for(config)
    skips, mid = ours(*inputs)
    expected = theirs(*inputs)
    for residual, other in zip([*skips, mid], [*expected.down_block_res_samples,
                                               expected.mid_block_res_sample], strict=True):
        assert relative_error(residual, other) <= 1e-5


@CONFIGS
@pytest.mark.parametrize("checkpointing", [False, True])
def test_unet_under_control_and_its_gradients_equal_diffusers(config: ControlNetConfig,
                                                              checkpointing: bool) -> None:
    """The UNet frozen, as in training: the ControlNet's gradients come through the decoder."""
    (ours, theirs), (unet, their_unet) = twins(config), unets(config)
    z_t, t, context, condition = inputs_for(config)
    for module in (ours, theirs, unet, their_unet):
        module.requires_grad_(module in (ours, theirs))
        module.zero_grad()
    ours.checkpointing = unet.checkpointing = checkpointing
    try:
        with no_module_changes_its_inputs(ours):
            eps_hat = unet(z_t, t, context, control=ours(z_t, t, context, condition))
        eps_hat.square().sum().backward()
    finally:
        ours.checkpointing = unet.checkpointing = False
    residuals = theirs(z_t, t, context, condition)
    expected = their_unet(z_t, t, context, down_block_additional_residuals=residuals.down_block_res_samples,
                          mid_block_additional_residual=residuals.mid_block_res_sample).sample
    expected.square().sum().backward()
    assert relative_error(eps_hat.detach(), expected.detach()) <= 1e-5
    assert relative_error(unet(z_t, t, context).detach(), expected.detach()) > 1e-2  # it did something
    weights = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        assert relative_error(weight.grad, weights[name].grad) <= 1e-4, name


@CONFIGS
@pytest.mark.parametrize("conditions", [3, 6])
@torch.no_grad()
def test_guided_halves_share_what_they_can(config: ControlNetConfig, conditions: int) -> None:
    (ours, theirs), (unet, their_unet) = twins(config), unets(config)
    z_t, _, context, condition = inputs_for(config)
    t, contexts = torch.tensor([500]), FixedContext(torch.cat([context, -context]))
    both = torch.cat([condition, 1 - condition]) if conditions == 6 else condition
    eps_hat = unet(z_t, t, contexts, control=ours(z_t, t, contexts, both))
    z = torch.cat([z_t] * 2)
    residuals = theirs(z, t, contexts.tokens, both if conditions == 6 else torch.cat([both] * 2))
    expected = their_unet(z, t, contexts.tokens,
                          down_block_additional_residuals=residuals.down_block_res_samples,
                          mid_block_additional_residual=residuals.mid_block_res_sample).sample
    assert relative_error(eps_hat, expected) <= 1e-5


# ---- fresh

@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("channels", [4, 9])
def test_a_fresh_one_changes_nothing_but_learns_at_once(channels: int, share: bool) -> None:
    unet, _ = twin_unets(unet_config(SMALL, channels))
    unet.requires_grad_(False)
    control = copy_encoder(unet, 2, torch.Generator().manual_seed(0), share=share)
    z_t, t, context, _ = inputs_for(SMALL)
    z = torch.cat([z_t] * 3, dim=1)[:, :channels]
    condition = torch.ones(3, 2, 128, 64)
    eps_hat = unet(z, t, context, control=control(z_t, t, context, condition))
    assert torch.equal(eps_hat, unet(z, t, context))
    eps_hat.square().sum().backward()
    assert control.controlnet_mid_block.weight.grad.abs().max() > 0
    assert all(conv.weight.grad.abs().max() > 0 for conv in control.controlnet_down_blocks)


def test_a_copy_shares_the_unets_memory_only_where_asked() -> None:
    unet = UNet(unet_config(SMALL)).bfloat16()
    copied = unet.state_dict()
    for share in (False, True):
        control = copy_encoder(unet, 3, torch.Generator().manual_seed(0), share=share)
        for name, tensor in control.state_dict().items():
            if name in copied:
                assert torch.equal(tensor, copied[name].to(tensor.dtype))
                assert (tensor.data_ptr() == copied[name].data_ptr()) is share
            assert tensor.dtype == (torch.bfloat16 if share and name in copied else torch.float32)


@torch.no_grad()
def test_the_condition_reaches_the_last_layer_of_its_encoder() -> None:
    """With torch's own initial weights a mask would arrive there at a few thousandths of its size."""
    control = copy_encoder(UNet(unet_config(SMALL)), 3, torch.Generator().manual_seed(0))
    encoder, mask = control.controlnet_cond_embedding, torch.zeros(1, 3, 64, 64)
    mask[..., 16:48, 16:48] = 1
    seen = []
    encoder.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(mask)
    assert seen[0][..., 3:5, 3:5].std() > 0.1
    assert (seen[0][..., 0, 0] == 0).all()  # no biases at first: an empty mask says nothing
