"""LoRA files written in the layouts of others, with what this project needs to take them back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from errors import UserError
from files import save_json, save_tensors, write_atomic
from formats import (
    CHECKPOINT,
    DAMAGE_TYPES,
    DIFFUSERS,
    PEFT,
    PEFT_CONFIG,
    PEFT_METADATA,
    Layer,
    LoRAFile,
)
from sd.text import placeholder
from spellings import kohya_names


def write_lora(file: LoRAFile, out: Path, layout: str) -> list[Path]:
    """Write `file` into the folder `out` in `layout`; returns what was written. Raises UserError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists and is not an empty folder; give another OUT")
    if layout == "checkpoint":
        return [_write_checkpoint(file, out / CHECKPOINT)]
    write = {"diffusers": _write_diffusers, "peft": _write_peft, "kohya": _write_kohya}[layout]
    written = write(file, out)
    if file.about is not None:
        save_tensors(out / DAMAGE_TYPES, file.rest, "adapter", file.about)
        written += [out / DAMAGE_TYPES, *_write_words(file, out / "embeddings")]
    return written


def _write_words(file: LoRAFile, out: Path) -> list[Path]:
    """The trained words of a --context prompt checkpoint, each a textual-inversion file: word, (tokens, dim).

    diffusers takes the word from the file, A1111 and ComfyUI from the file's name.
    """
    if not file.about.get("prompts"):
        return []
    places = [out / f"{placeholder(name).strip('<>')}.safetensors" for name in file.about["classes"]]
    rows = file.rest["class_embedding.weight"].unflatten(1, (file.about["tokens_per_class"], -1))
    return [_save(place, {f"<{place.stem}>": row}, {}) for place, row in zip(places, rows, strict=True)]


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, {"format": "pt", **metadata}))
    return path


def _folded(layer: Layer, alpha: float) -> Tensor:
    """B for another alpha, so that alpha / rank * B A stays the same.

    Exact where the factor is a power of two, as the recipe's is; else rounded to fp32, whatever B was.
    """
    B = layer.B.float() * (layer.alpha / alpha)
    half = B.to(layer.B.dtype)
    return half if torch.equal(half.float(), B) else B


def _write_checkpoint(file: LoRAFile, path: Path) -> Path:
    if file.about is None:
        raise UserError(f"a {file.layout} file without {DAMAGE_TYPES} beside it knows no damage types and "
                        "makes no checkpoint; start a training from it (--init-lora), or add it at sampling "
                        "(sample.py --lora)")
    tensors = {}
    for module, layer in file.layers.items():
        if layer.rank != file.about["rank"]:
            raise UserError(f"{module} has rank {layer.rank}, but {DAMAGE_TYPES} belongs to a LoRA of rank "
                            f"{file.about['rank']}; was the file beside it exchanged?")
        tensors[f"{module}.lora_A.weight"] = layer.A
        tensors[f"{module}.lora_B.weight"] = _folded(layer, file.about["alpha"])
    save_tensors(path, tensors | file.rest, "adapter", file.about)
    return path


def _components(layers: dict[str, Layer]) -> Iterator[tuple[str, dict[str, Layer]]]:
    """unet and text_encoder, as far as there are any, with their layers by module name.

    Without the text_model that transformers 5 left out: to peft the end of a name is enough.
    """
    for component in ("unet", "text_encoder"):
        own = {name.partition(".")[2].removeprefix("text_model."): layer for name, layer in layers.items()
               if name.startswith(f"{component}.")}
        if own:
            yield component, own


def _peft_config(layers: dict[str, Layer]) -> dict[str, Any]:
    """peft's settings of one model: the most frequent rank and alpha, and the modules with others."""
    rank = Counter(layer.rank for layer in layers.values()).most_common(1)[0][0]
    alpha = Counter(layer.alpha for layer in layers.values()).most_common(1)[0][0]
    return {"peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
            "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != rank},
            "alpha_pattern": {name: layer.alpha for name, layer in layers.items() if layer.alpha != alpha},
            "target_modules": sorted(layers), "lora_dropout": 0.0, "bias": "none", "use_rslora": False,
            "use_dora": False, "fan_in_fan_out": False}


def _write_diffusers(file: LoRAFile, out: Path) -> list[Path]:
    layers = {name: Layer(layer.A, _folded(layer, layer.rank), float(layer.rank))
              for name, layer in file.layers.items()}
    tensors = {f"{name}.{part}.weight": tensor for name, layer in layers.items()
               for part, tensor in (("lora_A", layer.A), ("lora_B", layer.B))}
    settings = {f"{component}.{key}": value for component, own in _components(layers)
                for key, value in _peft_config(own).items()}
    metadata = {**file.metadata, PEFT_METADATA: json.dumps(settings, indent=2, sort_keys=True)}
    return [_save(out / DIFFUSERS, tensors, metadata)]


def _write_peft(file: LoRAFile, out: Path) -> list[Path]:
    components = dict(_components(file.layers))
    if "text_encoder" in components:
        raise UserError("--to peft: the text encoder is adapted too, and a peft folder holds the adapter of "
                        "one model; use diffusers or kohya")
    layers = components["unet"]
    tensors = {f"base_model.model.{name}.{part}.weight": tensor for name, layer in layers.items()
               for part, tensor in (("lora_A", layer.A), ("lora_B", layer.B))}
    about = {"base_model_name_or_path": (file.about or {}).get("base"), "inference_mode": True}
    save_json(out / PEFT_CONFIG, about | _peft_config(layers))
    return [_save(out / PEFT, tensors, file.metadata), out / PEFT_CONFIG]


def _write_kohya(file: LoRAFile, out: Path) -> list[Path]:
    names = {module: name for name, module in kohya_names().items()}
    tensors = {}
    for module, layer in file.layers.items():
        tensors[f"{names[module]}.lora_down.weight"] = layer.A
        tensors[f"{names[module]}.lora_up.weight"] = layer.B
        tensors[f"{names[module]}.alpha"] = torch.tensor(layer.alpha)
    config = _peft_config(file.layers)
    metadata = {"ss_network_module": "networks.lora", "ss_network_dim": str(config["r"]), "ss_v2": "False",
                "ss_network_alpha": str(config["lora_alpha"]), "ss_base_model_version": "sd_v1"}
    return [_save(out / f"{out.resolve().name}.safetensors", tensors, metadata | file.metadata)]
