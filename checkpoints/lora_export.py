"""LoRA files written in the layouts of other programs, with all that is needed to convert them back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints.lora_formats import (
    DAMAGE_TYPES,
    FORMATS,
    PEFT_CONFIG,
    PEFT_METADATA,
    Layer,
    LoRAFile,
    Settings,
)
from runtime.errors import UserError
from runtime.files import save_json
from runtime.tensor_files import save_safetensors, save_tensors
from sd.pretrained.text_encoder import placeholder


def write_lora(file: LoRAFile, out: Path, layout: str, name: str) -> list[Path]:
    """Write `file` in `layout` into the folder `out`; returns the files. name: that of kohya's file.

    Raises UserError, before anything is written, where the layout cannot hold it.
    """
    form, about, layers = FORMATS[layout], file.about, _stored(file, layout)
    path, metadata = out / form.file.format(name=name), {"format": "pt", **file.metadata}
    tensors = {f"{form.key(module)}.{part}": torch.as_tensor(value) for module, layer in layers.items()
               for part, value in zip(form.parts, layer, strict=False)}
    settings = _peft_settings(layers)
    if layout == "checkpoint":
        save_tensors(path, tensors | file.rest, "adapter", about or {})
        return [path]
    written = [path]
    if layout == "diffusers":
        entries = {f"{component}.{key}": value for component, own in settings.items()
                   for key, value in own.items()}
        metadata[PEFT_METADATA] = json.dumps(entries, indent=2, sort_keys=True)
    elif layout == "peft":
        if "text_encoder" in settings:
            raise UserError("--to peft: the text encoder is adapted too, and a peft folder holds the adapter "
                            "of one model; use diffusers or kohya")
        base = {"base_model_name_or_path": (about or {}).get("base"), "inference_mode": True}
        save_json(out / PEFT_CONFIG, base | settings["unet"])
        written.append(out / PEFT_CONFIG)
    else:
        first = next(iter(settings.values()))
        metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(first["r"]), "ss_v2": "False",
                    "ss_network_alpha": str(first["lora_alpha"]), "ss_base_model_version": "sd_v1"} | metadata
    save_safetensors(path, tensors, metadata)
    if about is not None:
        save_tensors(out / DAMAGE_TYPES, file.rest, "adapter", about)
        written += [out / DAMAGE_TYPES, *_write_words(file.rest, about, out / "embeddings")]
    return written


def _stored(file: LoRAFile, layout: str) -> dict[str, Layer]:
    """The layers with the alpha that `layout` demands. Raises UserError where they make no checkpoint."""
    if layout == "diffusers":
        return {module: _folded(layer, layer.rank) for module, layer in file.layers.items()}
    if layout != "checkpoint":
        return file.layers
    if file.about is None:
        raise UserError(f"a {file.layout} file without {DAMAGE_TYPES} beside it has no damage types, so no "
                        "checkpoint can be made; start a training from it (--init-lora), or add it at "
                        "sampling (sample.py --lora)")
    rank = file.about["rank"]
    if other := [(module, layer.rank) for module, layer in file.layers.items() if layer.rank != rank]:
        raise UserError(f"{other[0][0]} has rank {other[0][1]}, but {DAMAGE_TYPES} belongs to a LoRA of rank "
                        f"{rank}; was one of the two files replaced?")
    return {module: _folded(layer, file.about["alpha"]) for module, layer in file.layers.items()}


def _folded(layer: Layer, alpha: float) -> Layer:
    """The layer with another alpha, and B such that alpha / rank * B A stays the same.

    Exact where the factor is a power of two, as the recipe's is; else rounded to fp32, whatever B's type is.
    """
    B = layer.B.float() * (layer.alpha / alpha)
    half = B.to(layer.B.dtype)
    return Layer(layer.A, half if torch.equal(half.float(), B) else B, float(alpha))


def _peft_settings(layers: dict[str, Layer]) -> Settings:
    """peft's settings of each adapted model: the most frequent rank and alpha, and modules with others.

    Module names are without the text_model that transformers 5 removed: peft compares their ends.
    """
    settings = {}
    for component in ("unet", "text_encoder"):
        own = {name.partition(".")[2].removeprefix("text_model."): layer for name, layer in layers.items()
               if name.startswith(f"{component}.")}
        if not own:
            continue
        rank = Counter(layer.rank for layer in own.values()).most_common(1)[0][0]
        alpha = Counter(layer.alpha for layer in own.values()).most_common(1)[0][0]
        settings[component] = {
            "peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "rank_pattern": {name: layer.rank for name, layer in own.items() if layer.rank != rank},
            "alpha_pattern": {name: layer.alpha for name, layer in own.items() if layer.alpha != alpha},
            "target_modules": sorted(own), "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
            "use_dora": False, "fan_in_fan_out": False}
    return settings


def _write_words(rest: dict[str, Tensor], about: dict[str, Any], out: Path) -> list[Path]:
    """Each trained word of a --context prompt checkpoint as a textual-inversion file: word -> (tokens, dim).

    diffusers takes the word from the file, A1111 and ComfyUI from the file's name.
    """
    if not about.get("prompts"):
        return []
    words = [placeholder(name) for name in about["classes"]]
    rows = rest["class_embedding.weight"].unflatten(1, (about["tokens_per_class"], -1))
    files = [out / f"{word.strip('<>')}.safetensors" for word in words]
    for file, word, row in zip(files, words, rows, strict=True):
        save_safetensors(file, {word: row}, {"format": "pt"})
    return files
