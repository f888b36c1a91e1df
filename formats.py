"""LoRA files read in the layouts of others: diffusers, peft, and kohya's, which ComfyUI and A1111 use.

    diffusers   pytorch_lora_weights.safetensors     unet.<module>.lora_A.weight, or .lora.down.weight
    peft        adapter_model.safetensors            base_model.model.<module>.lora_A.weight
                with adapter_config.json beside it
    kohya       NAME.safetensors                     lora_unet_<module with _ for .>.lora_down.weight, .alpha
    checkpoint  adapter.safetensors of this project  unet.<module>.lora_A.weight, and the damage types

In all of them y = W x + alpha / rank * B A x; they differ in where alpha stands. diffusers' layout has no
sure place for it (a reader that knows no metadata takes alpha = rank), so there alpha / rank goes into B.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from config import fits
from errors import UserError
from files import read_own, read_tensors, verified
from header import read_header
from spellings import layout_of, other_kind, read_name

LAYOUTS = ("checkpoint", "diffusers", "peft", "kohya")
CHECKPOINT, DIFFUSERS = "adapter.safetensors", "pytorch_lora_weights.safetensors"
PEFT, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DAMAGE_TYPES = "damage_types.safetensors"  # beside an exported LoRA: all else that the checkpoint held
PEFT_METADATA = "lora_adapter_metadata"  # peft's settings in the header of a diffusers file
NAMED = r"(.*\.)?({})"  # peft's way to name modules by the last parts of their names


class Layer(NamedTuple):
    """The adapter of one module: A (r, in) and B (out, r); of a convolution (r, in, k, k), (out, r, 1, 1)."""

    A: Tensor
    B: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the module's weight."""
        return (len(self.B), *self.A.shape[1:])

    def delta(self) -> Tensor:
        """alpha / rank * B A in fp32, in the shape of the module's weight."""
        product = self.B.float().flatten(1) @ self.A.float().flatten(1)
        return (self.alpha / self.rank * product).view(self.shape)


@dataclass(frozen=True)
class LoRAFile:
    """What a file holds. Modules are called unet.<module> or text_encoder.<module>.

    about, rest: a checkpoint's header and its tensors beside the LoRA; None and {} in files of others.
    """

    layout: str
    layers: dict[str, Layer]
    metadata: dict[str, str]
    about: dict[str, Any] | None
    rest: dict[str, Tensor]

    @property
    def widened(self) -> bool:
        """Whether the first layer is in it whole, as where a base was widened to take masks."""
        return "unet.conv_in.weight" in self.rest


def read_lora(path: Path) -> LoRAFile:
    """A LoRA file, or the folder that holds one, in any of the layouts; which one is seen from its tensors.

    Raises UserError for a file that is damaged, holds another kind of adapter, or tensors of unknown names.
    """
    file = find_lora(path)
    tensors, metadata = read_tensors(file)
    for name in tensors:
        if kind := other_kind(name):
            raise UserError(f"{file}: a {kind} adapter (it holds {name}); only plain LoRA is supported")
    if "adapter" in metadata:
        return _read_checkpoint(file, tensors, metadata)
    layout = layout_of(tensors)
    if layout is None:
        shown = next(iter(tensors), "nothing")
        raise UserError(f"{file}: no LoRA for Stable Diffusion 1.5 in a known layout (it holds {shown})")
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = read_name(layout, name)
        if found is None:
            raise UserError(f"{file}: {name} is no tensor of a plain LoRA for Stable Diffusion 1.5; is it "
                            "for another model?")
        module, part = found
        modules.setdefault(module, {})[part] = tensor
    configs = _peft_configs(file, layout, metadata)
    layers = {module: _layer(file, module, parts, configs) for module, parts in sorted(modules.items())}
    metadata = {key: value for key, value in metadata.items() if key not in ("format", PEFT_METADATA)}
    companion = file.with_name(DAMAGE_TYPES)
    if not companion.is_file():
        return LoRAFile(layout, layers, metadata, None, {})
    rest, about = read_own(companion, "adapter")
    read_header(companion, about)
    return LoRAFile(layout, layers, metadata, about, rest)


def find_lora(path: Path) -> Path:
    """The LoRA file that `path`, a file or a folder, stands for. Raises UserError."""
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a LoRA file or its folder")
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: a pickle (.bin, .pt, .ckpt) can run code; give a .safetensors file")
        return path
    for name in (CHECKPOINT, DIFFUSERS, PEFT):
        if (path / name).is_file():
            return path / name
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name != DAMAGE_TYPES]
    if len(files) != 1:
        raise UserError(f"{path}: holds {len(files)} .safetensors files; give the LoRA file itself")
    return files[0]


def _read_checkpoint(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> LoRAFile:
    about = verified(file, tensors, metadata["adapter"])
    read_header(file, about)
    modules: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for name, tensor in tensors.items():
        if found := read_name("diffusers", name):
            module, part = found
            modules.setdefault(module, {})[part] = tensor
        else:
            rest[name] = tensor
    if not modules:
        raise UserError(f"{file}: holds no LoRA (it is of kind {about.get('kind')!r})")
    configs = {"unet": {"lora_alpha": about["alpha"]}}
    layers = {module: _layer(file, module, parts, configs) for module, parts in modules.items()}
    return LoRAFile("checkpoint", layers, {}, about, rest)


def _json(file: Path, text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:  # which brackets in brackets cause
        raise UserError(f"{file}: its settings cannot be read ({error}); copy it again") from error
    return value


def _peft_configs(file: Path, layout: str, metadata: dict[str, str]) -> dict[str, dict[str, Any]]:
    """peft's settings of unet and text_encoder, as far as the file has any. Raises UserError."""
    if layout == "peft":
        place = file.with_name(PEFT_CONFIG)
        if not place.is_file():
            raise UserError(f"{place}: missing; peft keeps alpha there, so {file.name} alone says too little")
        configs = {"unet": _json(place, place.read_bytes())}
    else:
        configs, place = {}, file
        for key, value in _json(file, metadata.get(PEFT_METADATA, "{}")).items():
            component, _, setting = key.partition(".")
            configs.setdefault(component, {})[setting] = value
    for config in configs.values():
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
            kind = "DoRA" if config.get("use_dora") else config["peft_type"]
            raise UserError(f"{place}: a {kind} adapter; only plain LoRA is supported")
        patterns = config.get("alpha_pattern") or {}
        if not (fits(patterns, dict) and fits([config.get("lora_alpha", 0), *patterns.values()], list[float])
                and all(map(_harmless, patterns))):
            raise UserError(f"{place}: its alpha cannot be read ({patterns or config['lora_alpha']}); only "
                            "numbers, and names with few wildcards, are supported")
    return configs


def _harmless(pattern: str) -> bool:
    """Whether a regular expression of others is one, and takes no endless time to match a module's name."""
    try:
        re.compile(NAMED.format(pattern))
    except (re.error, RecursionError, OverflowError):
        return False
    return re.search(r"\)[*+?{]", pattern) is None and len(re.findall(r"[*+{]", pattern)) <= 3


def _layer(file: Path, module: str, parts: dict[str, Tensor], configs: dict[str, dict[str, Any]]) -> Layer:
    """One module's tensors with its alpha. Raises UserError where they are not what a LoRA has."""
    A, B = parts.get("A"), parts.get("B")
    if A is None or B is None:
        raise UserError(f"{file}: {module} has only one of its two LoRA tensors; copy it again")
    if (A.ndim not in (2, 4) or B.ndim != A.ndim or B.shape[1] != A.shape[0] or not A.numel()
            or B.numel() != len(B) * len(A) or not A.is_floating_point() or not B.is_floating_point()):
        raise UserError(f"{file}: {module} has LoRA tensors {A.dtype} {tuple(A.shape)} and {B.dtype} "
                        f"{tuple(B.shape)}, which do not fit each other")
    if not (A.float().isfinite().all() and B.float().isfinite().all()):
        raise UserError(f"{file}: {module} has LoRA tensors that are not finite; was its training diverging?")
    component, _, name = module.partition(".")
    try:
        alpha = _alpha(name, parts.get("alpha"), configs.get(component), len(A))
        if not math.isfinite(alpha):
            raise ValueError(f"it is {alpha}")
    except (RuntimeError, ValueError) as error:  # of several numbers, or none
        raise UserError(f"{file}: the alpha of {module} cannot be read ({error}); copy it again") from error
    return Layer(A, B, alpha or float(len(A)))  # kohya: no alpha, or 0, means the rank


def _alpha(name: str, own: Tensor | None, config: dict[str, Any] | None, rank: int) -> float:
    """A module's alpha, from the settings where there are any, else its own; 0 where neither says it."""
    if not config:
        return 0.0 if own is None else float(own.item())
    patterns = config.get("alpha_pattern") or {}
    alpha = next((value for pattern, value in patterns.items()
                  if re.fullmatch(NAMED.format(pattern), name)), config.get("lora_alpha", 0))
    # arXiv 2312.03732: alpha / sqrt(rank)
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1)
