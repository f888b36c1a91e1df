"""Files with exactly the published models' names, shapes and types, filled with random numbers.

Names and shapes come from diffusers' own modules, which load the published files strictly, and from the
definitions of the original code; nothing here is shared with sd/weights.py, which these files are to test.
`header_size` and the published byte counts tie them to the real files (test_weights.py).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]

# unet/config.json and vae/config.json as published (stable-diffusion-v1-5/stable-diffusion-v1-5).
UNET_JSON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
    "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 4, "sample_size": 64, "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
VAE_JSON: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
    "sample_size": 512, "up_block_types": ["UpDecoderBlock2D"] * 4}
# config.json of lllyasviel/control_v11p_sd15_seg.
CONTROLNET_JSON: dict[str, Any] = {
    "_class_name": "ControlNetModel", "_diffusers_version": "0.16.0.dev0", "act_fn": "silu",
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "class_embed_type": None,
    "conditioning_embedding_out_channels": [16, 32, 96, 256], "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 768, "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4,
    "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default", "upcast_attention": False, "use_linear_projection": False}
# The same topology, narrow. Widths differ where SD 1.5's differ, so that a mix-up of levels shows.
SMALL_UNET = UNET_JSON | {"block_out_channels": [16, 32, 64, 64], "cross_attention_dim": 24,
                          "norm_num_groups": 8, "attention_head_dim": 4}
SMALL_CONTROLNET = CONTROLNET_JSON | {
    "block_out_channels": [16, 32, 64, 64], "cross_attention_dim": 24, "norm_num_groups": 8,
    "attention_head_dim": 4}
SMALL_VAE = VAE_JSON | {"block_out_channels": [8, 16, 32, 32], "norm_num_groups": 4}
FP32, FP16 = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"


def unet_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of unet/*.safetensors."""
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        return _shapes(UNet2DConditionModel.from_config(config))


def controlnet_shapes(config: dict[str, Any]) -> Shapes:
    """Names and shapes of a ControlNet's diffusion_pytorch_model.safetensors."""
    from diffusers import ControlNetModel
    with torch.device("meta"):
        return _shapes(ControlNetModel.from_config(config))


def vae_shapes(config: dict[str, Any], *, legacy: bool = False) -> Shapes:
    """Names and shapes of vae/*.safetensors; the published fp32 file has the legacy names, fp16 the new."""
    from diffusers import AutoencoderKL
    with torch.device("meta"):
        shapes = _shapes(AutoencoderKL.from_config(config))
    return legacy_vae(shapes) if legacy else shapes


def _shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def legacy_vae(values: Mapping[str, T]) -> dict[str, T]:
    """The names that the VAE's attention had before diffusers 0.12."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    return {functools.reduce(lambda name, new: name.replace(new, old[new]), old, name): value
            for name, value in values.items()}


def text_shapes(width: int = 768, inner: int = 3072, layers: int = 12, words: int = 49408) -> Shapes:
    """Names and shapes of text_encoder/model.safetensors, less the position_ids."""
    shapes: Shapes = {"text_model.embeddings.token_embedding.weight": (words, width),
                      "text_model.embeddings.position_embedding.weight": (77, width)}
    linear = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    norms = ["text_model.final_layer_norm"]
    for i in range(layers):
        norms += [f"text_model.encoder.layers.{i}.layer_norm{j}" for j in (1, 2)]
        for name, shape in linear.items():
            shapes[f"text_model.encoder.layers.{i}.{name}.weight"] = shape
            shapes[f"text_model.encoder.layers.{i}.{name}.bias"] = shape[:1]
    return shapes | {f"{norm}.{leaf}": (width,) for norm in norms for leaf in ("weight", "bias")}


def random_tensors(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """fp32 tensors at which a network's activations stay near 1: weights N(0, 1 / inputs), scales near 1."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        inputs = math.prod(shape[1:])
        tensor = torch.randn(shape, generator=generator) / math.sqrt(inputs if len(shape) > 1 else 100)
        tensors[name] = tensor + 1 if "norm" in name and name.endswith("weight") else tensor
    return tensors


def in_precision(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()}


def write(file: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in in_precision(tensors, dtype).items()}
    save_file(contiguous, file, {"format": "pt"})
    return file


def write_model(folder: Path, *, unet: dict[str, Any] | None = None, vae: dict[str, Any] | None = None,
                files: tuple[str, ...] = (FP32, FP16), seed: int = 0) -> Path:
    """A repository in diffusers layout; the inpainting one is `unet` with in_channels 9, files (FP16,)."""
    unet, vae = unet or SMALL_UNET, vae or SMALL_VAE
    unet_tensors = random_tensors(unet_shapes(unet), seed)
    vae_tensors = random_tensors(vae_shapes(vae), seed + 1)
    text = random_tensors(text_shapes(24, 48, 1, 50), seed + 2)
    text["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    for name in files:
        dtype = torch.float16 if "fp16" in name else torch.float32
        write(folder / "unet" / name, unet_tensors, dtype)
        vae_named = vae_tensors if "fp16" in name else legacy_vae(vae_tensors)
        write(folder / "vae" / name, vae_named, dtype)
        write(folder / "text_encoder" / name.replace("diffusion_pytorch_model", "model"), text, dtype)
    (folder / "scheduler").mkdir(exist_ok=True)
    for name, content in {
            "unet/config.json": unet, "vae/config.json": vae,
            "text_encoder/config.json": {"architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu",
                                         "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 1,
                                         "num_attention_heads": 2, "vocab_size": 50},
            "scheduler/scheduler_config.json": {
                "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False,
                "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False},
            "model_index.json": {"_class_name": "StableDiffusionPipeline",
                                 "unet": ["diffusers", "UNet2DConditionModel"],
                                 "vae": ["diffusers", "AutoencoderKL"]}}.items():
        (folder / name).write_text(json.dumps(content, indent=2))
    return folder


# --- the original single-file layout, built by walking through the original code's constructors ---

def _renamed(values: Mapping[str, T], modules: dict[str, str], leaves: dict[str, str]) -> dict[str, T]:
    """Every name's module prefix through `modules`, what follows inside a block through `leaves`."""
    result = {}
    for name, value in values.items():
        prefix = max((m for m in modules if name.startswith(m + ".")), key=len)
        inside, _, leaf = name[len(prefix) + 1:].rpartition(".")
        plain = ".attentions." in prefix and not prefix.startswith(("encoder", "decoder"))
        inside = inside if plain else leaves.get(inside, inside)
        result[".".join(part for part in (modules[prefix], inside, leaf) if part)] = value
    return result


def original_unet(values: Mapping[str, T]) -> dict[str, T]:
    """openaimodel.UNetModel: input_blocks and output_blocks are flat lists, appended to layer by layer."""
    modules = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
               "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
               "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
               "mid_block.resnets.1": "middle_block.2"}
    count = 1
    for level in range(4):
        for layer in range(2):
            modules[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{count}.0"
            modules[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{count}.1"
            count += 1
        modules[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{count}.0.op"
        count += 1
    count = 0
    for level in range(4):
        for layer in range(3):
            modules[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{count}.0"
            modules[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{count}.1"
            count += 1
        after = 1 if level == 0 else 2  # behind the resnet and, below the top level, its transformer
        modules[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{count - 1}.{after}.conv"
    leaves = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
              "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
    return _renamed(values, modules, leaves)


def original_controlnet(values: Mapping[str, T]) -> dict[str, T]:
    """cldm.cldm.ControlNet: the UNet's encoder under its own names, the hint's layers counted with SiLUs."""
    modules = {"controlnet_mid_block": "middle_block_out.0",
               "controlnet_cond_embedding.conv_in": "input_hint_block.0",
               "controlnet_cond_embedding.conv_out": "input_hint_block.14"}
    modules |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * (i + 1)}" for i in range(6)}
    modules |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(12)}
    own = {name: value for name, value in values.items() if name.startswith("controlnet_")}
    encoder = {name: value for name, value in values.items() if name not in own}
    return _renamed(own, modules, {}) | original_unet(encoder)


def original_vae(values: Mapping[str, T]) -> dict[str, T]:
    """diffusionmodules.model.Encoder and Decoder; the decoder inserts its levels at the front of `up`."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        for name, original in {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out",
                               "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
                               "mid_block.attentions.0": "mid.attn_1"}.items():
            modules[f"{half}.{name}"] = f"{half}.{original}"
    for level, mirrored in enumerate((3, 2, 1, 0)):
        for layer in range(3):
            modules[f"encoder.down_blocks.{level}.resnets.{layer}"] = f"encoder.down.{level}.block.{layer}"
            modules[f"decoder.up_blocks.{level}.resnets.{layer}"] = f"decoder.up.{mirrored}.block.{layer}"
        modules[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        modules[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{mirrored}.upsample.conv"
    leaves = {"conv_shortcut": "nin_shortcut", "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v",
              "to_out.0": "proj_out"}
    return _renamed(values, modules, leaves)


def original_layout(unet: Mapping[str, T], vae: Mapping[str, T], text: Mapping[str, T]) -> dict[str, T]:
    """The three components under their prefixes in one file; shapes or tensors may be the values."""
    return ({f"model.diffusion_model.{name}": value for name, value in original_unet(unet).items()}
            | {f"first_stage_model.{name}": value for name, value in original_vae(vae).items()}
            | {f"cond_stage_model.transformer.{name}": value for name, value in text.items()})


def with_convolutions(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in the original file: its VAE's attention is made of 1x1 convolutions."""
    return (*shape, 1, 1) if ".attn_1." in name and len(shape) == 2 else shape


def schedule_buffers() -> dict[str, Tensor]:
    """The twelve buffers of ddpm.DDPM and the two of its LitEma; their values do not matter to a loader."""
    names = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
             "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
             "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
             "posterior_mean_coef1", "posterior_mean_coef2")
    ema = {"model_ema.decay": torch.tensor(0.9999),
           "model_ema.num_updates": torch.tensor(470_000, dtype=torch.int32)}
    return {name: torch.zeros(1000) for name in names} | ema


def original_tensors(unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], *,
                     ema: bool = False) -> dict[str, Tensor]:
    """A whole original file from a UNet's and a VAE's tensors; `ema` adds a copy, as v1-5-pruned has."""
    tensors = original_layout(unet, vae, random_tensors(text_shapes(24, 48, 1, 50), 9))
    tensors = {name: tensor.reshape(with_convolutions(name, tuple(tensor.shape)))
               for name, tensor in tensors.items()} | schedule_buffers()
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if ema:
        tensors |= {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor + 1
                    for name, tensor in tensors.items() if name.startswith("model.")}
    return tensors


def file_size(shapes: Mapping[str, tuple[int, ...]], kind: str = "F32") -> int:
    """Bytes of a safetensors file that holds these: length field, JSON header padded to 8, data."""
    width, offset = {"F32": 4, "F16": 2}[kind], 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name in sorted(shapes):
        end = offset + width * math.prod(shapes[name])
        header[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + length + -length % 8 + offset


# --- parts of these files ---

def config_of(kind: type, values: dict[str, Any]) -> Any:
    """Our config of this kind from a published config.json."""
    known = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in known.items()})


def components(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """UNet and VAE as fp32 tensors under diffusers' present names."""
    vae = random_tensors(vae_shapes(SMALL_VAE), 1)
    return load_file(folder / "unet" / FP32), vae


def without(prefix: str) -> Callable[[dict[str, Any]], None]:
    """A function that deletes the tensors whose names begin with `prefix`."""
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]
    return change
