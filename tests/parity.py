"""Our modules beside diffusers', with the same random weights; and what is measured on such pairs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from published import CONTROLNET_JSON, UNET_JSON, VAE_JSON, random_tensors
from torch import Tensor, nn

from sd.controlnet import ControlNet, ControlNetConfig
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig

# Small models: with SD 1.5's proportions, and in the embedded base's form, whose widths rise and fall.
SMALL = UNetConfig(block_out_channels=(16, 32, 64, 64), cross_attention_dim=24, attention_head_dim=4,
                   norm_num_groups=8)
TINY = UNetConfig(block_out_channels=(24, 32, 28, 20), layers_per_block=1, cross_attention_dim=20,
                  attention_head_dim=2, norm_num_groups=4)
SMALL_VAE = VAEConfig(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
TINY_VAE = VAEConfig(block_out_channels=(8, 16, 24, 16), layers_per_block=1, norm_num_groups=8)


def twin_unets(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    """The UNet of `config`, ours and diffusers'."""
    levels = len(config.block_out_channels)
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
              "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1)}
    with torch.device("meta"):
        return _same_weights(UNet(config), UNet2DConditionModel.from_config(
            UNET_JSON | dataclasses.asdict(config) | blocks))


def twin_controlnets(config: ControlNetConfig) -> tuple[ControlNet, ControlNetModel]:
    """The ControlNet of `config`, ours and diffusers'."""
    levels = len(config.block_out_channels)
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]}
    with torch.device("meta"):
        return _same_weights(ControlNet(config), ControlNetModel.from_config(
            CONTROLNET_JSON | dataclasses.asdict(config) | blocks))


def twin_vaes(config: VAEConfig) -> tuple[VAE, AutoencoderKL]:
    """The VAE of `config`, ours and diffusers'."""
    with torch.device("meta"):
        return _same_weights(VAE(config), AutoencoderKL.from_config(VAE_JSON | dataclasses.asdict(config)))


def _same_weights(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """Give two modules made on the meta device the same tensors: once in memory, also at full size."""
    with torch.device("cpu"):
        weights = random_tensors({name: tuple(x.shape) for name, x in ours.state_dict().items()})
    for module in (ours, theirs):
        module.load_state_dict(weights, assign=True)
    return ours.eval(), theirs.eval()


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What shapes do not show: each norm's groups and epsilon, each attention's number of heads."""
    settings: dict[str, Any] = {}
    for name, inner in module.named_modules():
        if isinstance(inner, (nn.GroupNorm, nn.LayerNorm)):
            settings[name] = getattr(inner, "num_groups", None), inner.eps
        elif hasattr(inner, "to_q"):
            settings[name] = inner.heads
    return settings


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@contextlib.contextmanager
def no_module_changes_its_inputs(module: nn.Module) -> Iterator[None]:
    """Fail where a module inside `module` writes into a tensor that it was given (each write is counted)."""
    def versions(inputs: tuple[Any, ...]) -> list[int]:
        return [x._version for x in inputs if isinstance(x, Tensor)]

    before: list[list[int]] = []

    def enter(inner: nn.Module, inputs: tuple[Any, ...]) -> None:
        before.append(versions(inputs))

    def leave(inner: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        assert versions(inputs) == before.pop(), f"{type(inner).__name__} changed its input"

    hooks = [hook for inner in module.modules()
             for hook in (inner.register_forward_pre_hook(enter), inner.register_forward_hook(leave))]
    yield
    for hook in hooks:
        hook.remove()
    assert not before
