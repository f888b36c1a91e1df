"""How the layouts of others spell the tensors of a LoRA, and to which layer of SD 1.5 each belongs."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import torch
from torch import nn

from sd.unet import UNet, UNetConfig

# Tensors of other adapter kinds, by what is found in their names.
OTHER_KINDS = {"lora_magnitude_vector": "DoRA", "dora_scale": "DoRA", "hada_": "LoHa", "lokr_": "LoKr",
               "oft_": "OFT", "lora_mid": "LoCon in Tucker's form", "ia3_": "IA3",
               r"\.diff(_b)?$": "full-weight"}
SPELLINGS = {
    "diffusers": r"(?P<module>(unet|text_encoder)\..+)\.(?P<part>lora_A|lora_B|lora\w*\.(down|up))\.weight",
    "peft": r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A|lora_B)\.weight",
    "kohya": r"(?P<module>lora_\w+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)",
}


def other_kind(name: str) -> str | None:
    """Which other kind of adapter a tensor of this name belongs to; None for a plain LoRA's."""
    return next((kind for part, kind in OTHER_KINDS.items() if re.search(part, name)), None)


def layout_of(names: Iterable[str]) -> str | None:
    """The layout that spells one of `names` so; None for no LoRA's."""
    return next((layout for layout, spelling in SPELLINGS.items()
                 if any(re.fullmatch(spelling, _modern(name)) for name in names)), None)


def read_name(layout: str, name: str) -> tuple[str, str] | None:
    """A tensor's layer, unet.<module> or text_encoder.<module>, and whether it is its A, B or alpha.

    None for what is no tensor of a LoRA for SD 1.5.
    """
    found = re.fullmatch(SPELLINGS[layout], _modern(name))
    if found is None:
        return None
    module, part = found["module"], found["part"]
    if layout == "kohya":
        module = kohya_names().get(module)
    else:
        module = f"unet.{module}" if layout == "peft" else module
        module = module if module in kohya_names().values() else None
    return module and (module, "alpha" if part == "alpha" else "A" if re.search("A$|down", part) else "B")


def _modern(name: str) -> str:
    """diffusers' oldest spelling, attn1.processor.to_q_lora.down.weight, as attn1.to_q.lora.down.weight; and
    with the text_model that a text encoder's names lost in transformers 5.
    """
    name = re.sub(r"\.processor\.(to_\w+)_lora\.", r".\1.lora.", name)
    name = re.sub(r"^text_encoder\.encoder\.", "text_encoder.text_model.encoder.", name)
    return name.replace(".to_out.lora.", ".to_out.0.lora.")


@functools.cache
def kohya_names() -> dict[str, str]:
    """kohya's name -> ours, of every layer of SD 1.5. Its "_" stands for "." or itself: only a list tells.

    The layers of the embedded base are among them.
    """
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    inside = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
              "mlp.fc1", "mlp.fc2")
    text = [f"text_model.encoder.layers.{i}.{name}" for i in range(12) for name in inside]
    names = {f"lora_unet_{name.replace('.', '_')}": f"unet.{name}" for name, module in unet.named_modules()
             if isinstance(module, nn.Linear | nn.Conv2d)}
    return names | {f"{prefix}_{name.replace('.', '_')}": f"text_encoder.{name}" for name in text
                    for prefix in ("lora_te1", "lora_te")}
