"""Names of LoRA tensors in files of any program -> the layer of SD 1.5 that they belong to."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sd.unet import UNet, UNetConfig

# Adapters that are no plain LoRA, by a pattern in a tensor's name.
OTHER_KINDS = {
    r"magnitude_vector|dora_scale": "a DoRA", "hada_": "a LoHa", "lokr_": "a LoKr", "oft_": "an OFT",
    "ia3_": "an IA3", "vera_": "a VeRA", r"\.[ab][12]\.weight$": "a GLoRA",
    "lora_mid": "a LoCon in Tucker's form", r"\.diff(_b)?$|\.[wb]_norm$": "a full-weight"}
WORDS = r"emb_params|<.+>|clip_[lg]|string_to_(param|token).*"  # tensors of textual-inversion files
# Other models than SD 1.x, by a pattern in a tensor's name, or by the width that the layers of WIDE take.
OTHER_BASES = {
    r"single_(transformer_)?blocks|double_blocks|joint_blocks|^(lora_)?transformer[._]": "SD 3 or FLUX",
    r"lora_te2_|text_encoder_2|transformer_blocks[._][1-9]|(in|out)put_blocks[._]|middle_block[._]": "SDXL",
    r"^(lora_te|text_encoder)[._].*layers[._](1[2-9]|2\d)[._]": "SD 2.x"}
WIDE = re.compile(r".*(attn2[._](processor\.)?to_[kv]|self_attn[._][qkv]_proj)[._].*(down|lora_A)\b.*")
WIDTHS = {1024: "SD 2.x", 1280: "SDXL", 2048: "SDXL"}

# A tensor is <layer>.<part>: lora_A.weight, lora.down.weight, processor.to_q_lora.down.weight,
# lora_A.default.weight (the adapter's name in peft), lora_down.weight, alpha, ...
TENSOR = re.compile(r"(?P<layer>.+?)(([._]lora\w*)?\.(?P<part>lora_A|lora_B|lora_down|lora_up|down|up)"
                    r"(\.\w+)?\.weight|\.alpha)")


def other_kind(tensors: Mapping[str, Tensor]) -> str | None:
    """What a file holds that is no plain LoRA, with the tensor that shows it; None for a plain one."""
    for name, tensor in tensors.items():
        for pattern, kind in OTHER_KINDS.items():
            if re.search(pattern, name):
                return f"{kind} adapter (it holds {name}); only plain LoRA is supported"
        bare = "." not in name and tensor.ndim in (1, 2) and tensor.shape[-1] in (768, *WIDTHS)
        if bare or re.fullmatch(WORDS, name):
            return (f"a textual-inversion embedding (it holds {name}, {tuple(tensor.shape)}), not a LoRA; "
                    "--context prompt learns its own words, and nothing here reads those of others")
    return None


def other_base(tensors: Mapping[str, Tensor]) -> str | None:
    """The other model that a LoRA file is for, with the tensor that shows it; None for SD 1.x."""
    for name, tensor in tensors.items():
        found = [base for pattern, base in OTHER_BASES.items() if re.search(pattern, name)]
        if not found and tensor.ndim == 2 and WIDE.fullmatch(name):
            found = [base for width, base in WIDTHS.items() if width == tensor.shape[1]]
        if found:
            return (f"a LoRA for {found[0]} (it holds {name}, {tuple(tensor.shape)}); only those for SD 1.x "
                    "fit here")
    return None


def layout_of(name: str) -> str:
    """The layout, diffusers, peft or kohya, of a file that holds a tensor of this name."""
    if name.startswith("base_model."):
        return "peft"
    return "kohya" if re.match("lora_(unet|te)", name) else "diffusers"


def read_name(name: str) -> tuple[str, str] | None:
    """A tensor's layer, unet.<module> or text_encoder.<module>, and its part, "A", "B" or "alpha".

    None for what belongs to no LoRA of SD 1.5.
    """
    found = TENSOR.fullmatch(name) if len(name) < 500 else None
    if found is None:
        return None
    flat = re.sub(r"^(base_model\.model\.|lora_)", "", found["layer"])
    flat = flat.replace(".processor.", ".").replace(".", "_")
    flat = re.sub(r"^(te1?|text_encoder)_(text_model_)?", "text_encoder_text_model_", flat)
    flat = flat if flat.startswith(("unet_", "text_encoder_")) else f"unet_{flat}"
    layer = layers().get(flat) or layers().get(f"{flat}_0")  # the oldest diffusers: to_out for to_out.0
    part = "alpha" if found["part"] is None else "A" if re.search("A$|down$", found["part"]) else "B"
    return (layer, part) if layer else None


@functools.cache
def layers() -> dict[str, str]:
    """Every layer of SD 1.5 that a LoRA can adapt, by its name with "_" for ".", as kohya writes it.

    There "_" stands for "." or itself, so a name can only be looked up. The embedded base's layers are among
    them.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    inside = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
              "mlp.fc1", "mlp.fc2")
    names = [f"unet.{name}" for name, module in unet.named_modules()
             if isinstance(module, nn.Linear | nn.Conv2d)]
    names += [f"text_encoder.text_model.encoder.layers.{i}.{name}" for i in range(12) for name in inside]
    return {name.replace(".", "_"): name for name in names}
