"""The components of a published model: what each is made into, and how files and config.json spell it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from errors import UserError
from sd import compvis
from sd.controlnet import ControlNet, ControlNetConfig
from sd.text import TextConfig, clip_text_model, text_name
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig

WEIGHTS = "diffusion_pytorch_model"
MOST, MOST_LAYERS, MOST_LEVELS = 10**5, 100, 8  # in a config, so that nobody's makes endless modules


class Part(NamedTuple):
    """One component. `settings` and `blocks` are what config.json may say beside the fields of `config`."""

    title: str
    flag: str  # by which a user names the model
    folder: str  # of the component inside the model's
    module: Callable[[Any], nn.Module]  # config -> what holds the weights
    config: Any  # what a model without a config.json is taken for
    settings: dict[str, Any]
    blocks: Callable[[int], dict[str, list[str]]]  # the block types of a model with so many levels
    conv_in: str
    weights: str  # the file's name, less .safetensors
    name: Callable[[str], str | None]  # a key of a diffusers-layout file -> the module's, None: not needed
    prefixes: tuple[str, ...]  # of this part's keys in an original file
    original_name: Callable[[str], str | None]  # such a key, less its prefix -> the module's


def _vae_name(name: str) -> str:
    """The VAE's attention as SD 1.5's fp32 file still spells it, or any other name unchanged."""
    if ".mid_block.attentions." not in name:
        return name
    legacy = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    return ".".join(legacy.get(component, component) for component in name.split("."))


_UNET_SETTINGS = {
    "act_fn": "silu", "addition_embed_type": None, "attention_type": "default", "center_input_sample": False,
    "class_embed_type": None, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5, "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False,
    "resnet_time_scale_shift": "default", "time_cond_proj_dim": None, "time_embedding_type": "positional",
    "transformer_layers_per_block": 1, "use_linear_projection": False}

UNET = Part(
    title="unet", flag="--base", folder="unet", module=UNet, config=UNetConfig(), conv_in="conv_in.weight",
    settings=_UNET_SETTINGS,
    blocks=lambda levels: {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
                           "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1)},
    weights=WEIGHTS, name=lambda name: name, prefixes=compvis.UNET_PREFIXES, original_name=compvis.unet_name)

# A published ControlNet is alone in its folder. One whose condition is pooled, or in bgr, is of another kind.
CONTROLNET = Part(
    title="ControlNet", flag="--init", folder="", module=ControlNet, config=ControlNetConfig(),
    conv_in="conv_in.weight", settings=_UNET_SETTINGS | {
        "controlnet_conditioning_channel_order": "rgb", "global_pool_conditions": False,
        "projection_class_embeddings_input_dim": None, "addition_time_embed_dim": None},
    blocks=lambda levels: {"down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]},
    weights=WEIGHTS, name=lambda name: name, prefixes=compvis.CONTROLNET_PREFIXES,
    original_name=compvis.controlnet_name)

AUTOENCODER = Part(
    title="VAE", flag="--base", folder="vae", module=VAE, config=VAEConfig(),
    conv_in="encoder.conv_in.weight",
    settings={"act_fn": "silu", "latents_mean": None, "latents_std": None, "mid_block_add_attention": True,
              "shift_factor": None, "use_post_quant_conv": True, "use_quant_conv": True},
    blocks=lambda levels: {"down_block_types": ["DownEncoderBlock2D"] * levels,
                           "up_block_types": ["UpDecoderBlock2D"] * levels},
    weights=WEIGHTS, name=_vae_name, prefixes=compvis.VAE_PREFIXES, original_name=compvis.vae_name)

TEXT = Part(
    title="text encoder", flag="--base", folder="text_encoder", module=clip_text_model, config=TextConfig(),
    conv_in="", settings={"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}, blocks=lambda levels: {},
    weights="model", name=text_name, prefixes=compvis.TEXT_PREFIXES, original_name=text_name)


def controlnet_json(config: ControlNetConfig) -> dict[str, Any]:
    """config.json of a ControlNet as diffusers' ControlNetModel has it."""
    fields = dataclasses.asdict(config)
    fields.pop("out_channels")  # of the UNet
    names = ("act_fn", "class_embed_type", "controlnet_conditioning_channel_order", "downsample_padding",
             "flip_sin_to_cos", "freq_shift", "global_pool_conditions", "mid_block_scale_factor", "norm_eps",
             "only_cross_attention", "resnet_time_scale_shift", "use_linear_projection")
    return {"_class_name": "ControlNetModel", **fields, **CONTROLNET.blocks(len(config.block_out_channels)),
            **{name: CONTROLNET.settings[name] for name in names}}


def read_config(part: Part, file: Path) -> Any:
    """`part`'s dataclass from its config.json; unknown keys are ignored, null means the default.

    Raises UserError, naming the key, for a value that another architecture has (SD 2, SDXL).
    """
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        given = {key: value for key, value in given.items() if value is not None}
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: not a model's config.json ({error}); fetch the model again") from error

    def refused(key: str, wanted: Any) -> UserError:
        return UserError(f"{file}: {key} is {given[key]!r} where Stable Diffusion 1.5 has {wanted!r}; give a "
                         "model of its architecture")

    fields = {field.name: field.default for field in dataclasses.fields(part.config) if field.name in given}
    for key, default in fields.items():
        value = tuple(given[key]) if isinstance(given[key], list) else given[key]
        numbers = value if isinstance(value, tuple) else (value,)
        most = MOST_LAYERS if "layers" in key else MOST
        kinds = (int, float) if isinstance(default, float) else (int,)
        if (isinstance(value, tuple) != isinstance(default, tuple) or not 1 <= len(numbers) <= MOST_LEVELS
                or any(type(number) not in kinds or not 0 < number <= most for number in numbers)):
            raise refused(key, default)
        fields[key] = value
    config = dataclasses.replace(part.config, **fields)
    for key, wanted in (part.settings | part.blocks(len(getattr(config, "block_out_channels", ())))).items():
        if key in given and given[key] != wanted:
            raise refused(key, wanted)
    # Narrower is a model of our own making; wider is SD 2 (1024) or SDXL (2048).
    if getattr(config, "cross_attention_dim", 0) > UNetConfig.cross_attention_dim:
        raise refused("cross_attention_dim", UNetConfig.cross_attention_dim)
    return config
