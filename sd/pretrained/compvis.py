"""Translates tensor names of original single-file checkpoints (v1-5-pruned-emaonly.safetensors).

Source: the module definitions in CompVis/stable-diffusion (ldm/modules). Names are matched by whole words:
as text, "input_blocks.1" would also match "input_blocks.10". Unknown names are returned unchanged, and the
strict loader reports them.
"""

from __future__ import annotations

# Other tensors are the schedule's buffers and, in some files, a second UNet under model_ema.
UNET_PREFIXES = ("model.diffusion_model.",)
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_PREFIXES = ("cond_stage_model.transformer.",)
CONTROLNET_PREFIXES = ("control_model.", "")  # a ControlNet file holds nothing else

_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
           "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
           "nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _words(name: str) -> list[str | int]:
    return [int(word) if word.isdecimal() and len(word) < 5 else word for word in name.split(".")]


def _inside(module: list[str | int], table: dict[str, str] | None = None) -> str:
    """A module's path inside its block, translated by `table`; None: unchanged."""
    path = ".".join(map(str, module))
    return (table or {}).get(path, path)


def unet_name(name: str) -> str:
    """input_blocks.4.1.proj_in.weight -> down_blocks.1.attentions.0.proj_in.weight

    The original counts layers through all levels: 1 + 3 * level + layer going down (each third is the change
    of resolution), 3 * level + layer going up.
    """
    match _words(name):
        case ["time_embed", 0 | 2 as i, leaf]:
            return f"time_embedding.linear_{1 + i // 2}.{leaf}"
        case ["input_blocks", 0, 0, leaf]:
            return f"conv_in.{leaf}"
        case ["out", 0, leaf]:
            return f"conv_norm_out.{leaf}"
        case ["out", 2, leaf]:
            return f"conv_out.{leaf}"
        case ["input_blocks", int(i), 0, "op", leaf]:
            return f"down_blocks.{(i - 1) // 3}.downsamplers.0.conv.{leaf}"
        case ["input_blocks", int(i), 0, *module, leaf]:
            return f"down_blocks.{(i - 1) // 3}.resnets.{(i - 1) % 3}.{_inside(module, _RESNET)}.{leaf}"
        case ["input_blocks", int(i), 1, *module, leaf]:
            return f"down_blocks.{(i - 1) // 3}.attentions.{(i - 1) % 3}.{_inside(module)}.{leaf}"
        case ["middle_block", 0 | 2 as i, *module, leaf]:
            return f"mid_block.resnets.{i // 2}.{_inside(module, _RESNET)}.{leaf}"
        case ["middle_block", 1, *module, leaf]:
            return f"mid_block.attentions.0.{_inside(module)}.{leaf}"
        case ["output_blocks", int(i), 1 | 2, "conv", leaf]:  # 1 at the level that has no attention
            return f"up_blocks.{i // 3}.upsamplers.0.conv.{leaf}"
        case ["output_blocks", int(i), 0, *module, leaf]:
            return f"up_blocks.{i // 3}.resnets.{i % 3}.{_inside(module, _RESNET)}.{leaf}"
        case ["output_blocks", int(i), 1, *module, leaf]:
            return f"up_blocks.{i // 3}.attentions.{i % 3}.{_inside(module)}.{leaf}"
    return name


def controlnet_name(name: str) -> str:
    """input_hint_block.2.weight -> controlnet_cond_embedding.blocks.0.weight; as unet_name elsewhere.

    Source: cldm/cldm.py in lllyasviel/ControlNet, whose condition encoder counts its SiLUs as well.
    """
    match _words(name):
        case ["zero_convs", int(i), 0, leaf]:
            return f"controlnet_down_blocks.{i}.{leaf}"
        case ["middle_block_out", 0, leaf]:
            return f"controlnet_mid_block.{leaf}"
        case ["input_hint_block", 0, leaf]:
            return f"controlnet_cond_embedding.conv_in.{leaf}"
        case ["input_hint_block", 14, leaf]:
            return f"controlnet_cond_embedding.conv_out.{leaf}"
        case ["input_hint_block", int(i), leaf]:
            return f"controlnet_cond_embedding.blocks.{i // 2 - 1}.{leaf}"
    return unet_name(name)


def vae_name(name: str) -> str:
    """decoder.up.3.block.0.norm1.weight -> decoder.up_blocks.0.resnets.0.norm1.weight

    The original numbers the decoder's levels by resolution, so they run backwards: up.3 comes first.
    """
    match _words(name):
        case ["encoder", "down", int(i), "block", int(j), *module, leaf]:
            return f"encoder.down_blocks.{i}.resnets.{j}.{_inside(module, _RESNET)}.{leaf}"
        case ["encoder", "down", int(i), "downsample", "conv", leaf]:
            return f"encoder.down_blocks.{i}.downsamplers.0.conv.{leaf}"
        case ["decoder", "up", int(i), "block", int(j), *module, leaf]:
            return f"decoder.up_blocks.{3 - i}.resnets.{j}.{_inside(module, _RESNET)}.{leaf}"
        case ["decoder", "up", int(i), "upsample", "conv", leaf]:
            return f"decoder.up_blocks.{3 - i}.upsamplers.0.conv.{leaf}"
        case ["encoder" | "decoder" as half, "mid", "block_1" | "block_2" as block, *module, leaf]:
            return f"{half}.mid_block.resnets.{int(block[-1]) - 1}.{_inside(module, _RESNET)}.{leaf}"
        case ["encoder" | "decoder" as half, "mid", "attn_1", module, leaf]:
            return f"{half}.mid_block.attentions.0.{_inside([module], _VAE_ATTENTION)}.{leaf}"
        case ["encoder" | "decoder" as half, "norm_out", leaf]:
            return f"{half}.conv_norm_out.{leaf}"
    return name
