"""The components of a published model: the module, the file names, the keys, and what config.json may say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from runtime.errors import UserError
from runtime.files import json_object
from sd.controlnet import ControlNet, ControlNetConfig
from sd.pretrained import compvis
from sd.pretrained.text_encoder import TextConfig, clip_text_model, text_name
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig

WEIGHTS = "diffusion_pytorch_model"
MOST, MOST_LAYERS, MOST_LEVELS = 10**5, 100, 8  # limits on a config.json, which may be untrusted


class Component(NamedTuple):
    """One component. Of the other fields of config.json, `settings` and `blocks` are the values accepted."""

    title: str
    flag: str  # names the model on the command line
    folder: str  # subfolder in diffusers layout
    module: Callable[[Any], nn.Module]  # config -> module
    config: Any  # of a model without a config.json: SD 1.5's
    settings: dict[str, Any]
    blocks: Callable[[int], dict[str, list[str]]]  # number of levels -> block types
    conv_in: str
    weights: str  # file name without .safetensors
    name: Callable[[str], str | None]  # key of a diffusers-layout file -> module's key, None: not needed
    prefixes: tuple[str, ...]  # of its keys in an original file
    original_name: Callable[[str], str | None]  # key of an original file without prefix -> module's key


def _vae_name(name: str) -> str:
    """Translate the old attention names of SD 1.5's fp32 VAE file; other names are unchanged."""
    if ".mid_block.attentions." not in name:
        return name
    legacy = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join(legacy.get(word, word) for word in name.split("."))


_UNET_SETTINGS = {
    "act_fn": "silu", "addition_embed_type": None, "attention_type": "default", "center_input_sample": False,
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_norm": None, "downsample_padding": 1, "dropout": 0.0, "dual_cross_attention": False,
    "encoder_hid_dim": None, "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0,
    "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "num_attention_heads": None,
    "num_class_embeds": None, "only_cross_attention": False, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None,
    "transformer_layers_per_block": 1, "use_linear_projection": False}

UNET = Component(
    title="unet", flag="--base", folder="unet", module=UNet, config=UNetConfig(), conv_in="conv_in.weight",
    settings=_UNET_SETTINGS,
    blocks=lambda levels: {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
                           "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1)},
    weights=WEIGHTS, name=lambda name: name, prefixes=compvis.UNET_PREFIXES, original_name=compvis.unet_name)

# A published ControlNet is alone in its folder.
CONTROLNET = Component(
    title="ControlNet", flag="--init", folder="", module=ControlNet, config=ControlNetConfig(),
    conv_in="conv_in.weight", settings=_UNET_SETTINGS | {
        "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False,
        "projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None},
    blocks=lambda levels: {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]},
    weights=WEIGHTS, name=lambda name: name, prefixes=compvis.CONTROLNET_PREFIXES,
    original_name=compvis.controlnet_name)

AUTOENCODER = Component(
    title="VAE", flag="--base", folder="vae", module=VAE, config=VAEConfig(),
    conv_in="encoder.conv_in.weight",
    settings={"act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
              "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True},
    blocks=lambda levels: {"down_block_types": ["DownEncoderBlock2D"] * levels,
                           "up_block_types": ["UpDecoderBlock2D"] * levels},
    weights=WEIGHTS, name=_vae_name, prefixes=compvis.VAE_PREFIXES, original_name=compvis.vae_name)

TEXT = Component(
    title="text encoder", flag="--base", folder="text_encoder", module=clip_text_model, config=TextConfig(),
    conv_in="", settings={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}, blocks=lambda levels: {},
    weights="model", name=text_name, prefixes=compvis.TEXT_PREFIXES, original_name=text_name)


def controlnet_json(config: ControlNetConfig) -> dict[str, Any]:
    """config.json of a ControlNet for diffusers' ControlNetModel."""
    fields = dataclasses.asdict(config)
    fields.pop("out_channels")  # of the UNet
    names = ("act_fn", "class_embed_type", "controlnet_conditioning_channel_order", "downsample_padding",
             "flip_sin_to_cos", "freq_shift", "global_pool_conditions", "mid_block_scale_factor", "norm_eps",
             "only_cross_attention", "resnet_time_scale_shift", "use_linear_projection")
    return {"_class_name": "ControlNetModel", **fields, **CONTROLNET.blocks(len(config.block_out_channels)),
            **{name: CONTROLNET.settings[name] for name in names}}


def read_config(component: Component, file: Path) -> Any:
    """The component's config from its config.json. Unknown keys are ignored, null means the default.

    Raises UserError, naming the key, for the values of another architecture (SD 2, SDXL).
    """
    given = json_object(file.read_bytes(), f"{file}: not a model's config.json")
    given = {key: value for key, value in given.items() if value is not None}

    def refused(key: str, wanted: Any) -> UserError:
        return UserError(f"{file}: {key} is {given[key]!r} where Stable Diffusion 1.5 has {wanted!r}; give a "
                         "model of its architecture")

    default_config = component.config
    fields = {field.name: field.default for field in dataclasses.fields(default_config)
              if field.name in given}
    for key, default in fields.items():
        value = tuple(given[key]) if isinstance(given[key], list) else given[key]
        numbers = value if isinstance(value, tuple) else (value,)
        most = MOST_LAYERS if "layers" in key else MOST
        kinds = (int, float) if isinstance(default, float) else (int,)
        if (isinstance(value, tuple) != isinstance(default, tuple) or not 1 <= len(numbers) <= MOST_LEVELS
                or any(type(number) not in kinds or not 0 < number <= most for number in numbers)):
            raise refused(key, default)
        fields[key] = value
    config = dataclasses.replace(default_config, **fields)
    blocks = component.blocks(len(getattr(config, "block_out_channels", ())))
    for key, wanted in (component.settings | blocks).items():
        if key in given and given[key] != wanted:
            raise refused(key, wanted)
    # SD 2 has 1024, SDXL 2048; narrower ones are small models such as the embedded base.
    if getattr(config, "cross_attention_dim", 0) > UNetConfig.cross_attention_dim:
        raise refused("cross_attention_dim", UNetConfig.cross_attention_dim)
    return config
