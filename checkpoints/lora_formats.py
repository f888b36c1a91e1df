"""LoRA files read in the layouts of other programs: diffusers, peft, and kohya's (ComfyUI, A1111).

    diffusers   pytorch_lora_weights.safetensors     unet.<module>.lora_A.weight, or .lora.down.weight
    peft        adapter_model.safetensors            base_model.model.<module>.lora_A.weight
                with adapter_config.json beside it
    kohya       NAME.safetensors                     lora_unet_<module with _ for .>.lora_down.weight, .alpha
    checkpoint  adapter.safetensors of this project  unet.<module>.lora_A.weight, and the damage types

In all of them y = W x + alpha / rank * B A x; they differ in where alpha is. In diffusers' layout, readers
that ignore the metadata take alpha = rank, so alpha / rank is multiplied into B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from checkpoints.lora_keys import layout_of, other_base, other_kind, read_name
from checkpoints.metadata import read_header
from runtime.errors import UserError
from runtime.files import json_object
from runtime.flag_values import fits
from runtime.tensor_files import read_own, read_tensors, verified


class Format(NamedTuple):
    """How one layout stores a LoRA."""

    file: str  # {name}: of the LoRA
    key: Callable[[str], str]  # unet.<module> or text_encoder.<module> -> how its tensors' names begin
    parts: tuple[str, ...] = ("lora_A.weight", "lora_B.weight")  # of A, B and, if it is a tensor, alpha


def _kohya_key(name: str) -> str:
    return "lora_" + name.replace("text_encoder.", "te_", 1).replace(".", "_")


FORMATS = {
    "checkpoint": Format("adapter.safetensors", str),
    "diffusers": Format("pytorch_lora_weights.safetensors", str),
    "peft": Format("adapter_model.safetensors", lambda name: name.replace("unet.", "base_model.model.", 1)),
    "kohya": Format("{name}.safetensors", _kohya_key, ("lora_down.weight", "lora_up.weight", "alpha")),
}
PEFT_CONFIG = "adapter_config.json"
PEFT_METADATA = "lora_adapter_metadata"  # peft's settings in the header of a diffusers file
DAMAGE_TYPES = "damage_types.safetensors"  # beside an exported LoRA: what else the checkpoint held
BY_END = r"(.*\.)?({})"  # peft's patterns match the last parts of a module's name
Settings = dict[str, dict[str, Any]]  # peft's, of unet and text_encoder


class Layer(NamedTuple):
    """The adapter of one module: A (r, in), B (out, r); of a convolution (r, in, k, k), (out, r, 1, 1)."""

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
    """The content of a file. Modules are called unet.<module> or text_encoder.<module>.

    about, rest: a checkpoint's header and its tensors beside the LoRA; None and {} in files of others.
    """

    layout: str
    layers: dict[str, Layer]
    metadata: dict[str, str]
    about: dict[str, Any] | None
    rest: dict[str, Tensor]


def read_lora(path: Path) -> LoRAFile:
    """Read a LoRA file, or the folder that holds one, in whichever layout its tensors' names show.

    Raises UserError for a damaged file, another kind of adapter, another base's, or unknown tensors.
    """
    file = find_lora(path)
    tensors, metadata = read_tensors(file)
    about = verified(file, tensors, metadata.pop("adapter")) if "adapter" in metadata else None
    if about is None and (wrong := other_kind(tensors) or other_base(tensors)):
        raise UserError(f"{file}: {wrong}")
    modules, rest = _modules(file, tensors)
    if about is not None:
        read_header(file, about)
        if not modules:
            raise UserError(f"{file}: holds no LoRA (it is of kind {about['kind']!r})")
        layout, settings = "checkpoint", {"unet": {"lora_alpha": about["alpha"]}}
    elif rest or not modules:
        unknown = next(iter(rest), "nothing")
        raise UserError(f"{file}: no plain LoRA for Stable Diffusion 1.5 in a known layout (it holds "
                        f"{unknown}); is it for another model?")
    else:
        layout = layout_of(next(iter(tensors)))
        settings = _peft_settings(file, layout, metadata)
    layers = {module: _layer(file, module, parts, settings) for module, parts in sorted(modules.items())}
    metadata = {key: value for key, value in metadata.items() if key not in ("format", PEFT_METADATA)}
    companion = file.with_name(DAMAGE_TYPES)
    if layout != "checkpoint" and companion.is_file():
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
    known = [path / form.file for form in FORMATS.values() if (path / form.file).is_file()]
    files = known or [file for file in sorted(path.glob("*.safetensors")) if file.name != DAMAGE_TYPES]
    if not known and len(files) != 1:
        raise UserError(f"{path}: holds {len(files)} .safetensors files; give the LoRA file itself")
    return files[0]


def _modules(file: Path, tensors: dict[str, Tensor],
             ) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """module -> its parts "A", "B" and perhaps "alpha"; and the tensors that belong to no LoRA."""
    modules: dict[str, dict[str, Tensor]] = {}
    rest = {}
    for name, tensor in tensors.items():
        found = read_name(name)
        if found is None:
            rest[name] = tensor
        elif found[1] in modules.setdefault(found[0], {}):
            raise UserError(f"{file}: holds several adapters for {found[0]} ({name} is the second); save one "
                            "alone")
        else:
            modules[found[0]][found[1]] = tensor
    return modules, rest


def _peft_settings(file: Path, layout: str, metadata: dict[str, str]) -> Settings:
    """peft's settings, as far as the file has any. Raises UserError where they cannot be read."""
    settings: Settings = {}
    place = file.with_name(PEFT_CONFIG) if layout == "peft" else file
    complaint = f"{place}: its settings cannot be read"
    if layout == "peft":
        if not place.is_file():
            raise UserError(f"{place}: missing; peft stores alpha there, and {file.name} has none")
        settings["unet"] = json_object(place.read_bytes(), complaint)
    else:
        for key, value in json_object(metadata.get(PEFT_METADATA, "{}"), complaint).items():
            component, _, setting = key.partition(".")
            settings.setdefault(component, {})[setting] = value
    for config in settings.values():
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
            kind = "DoRA" if config.get("use_dora") else config["peft_type"]
            raise UserError(f"{place}: a {kind} adapter; only plain LoRA is supported")
        patterns = config.get("alpha_pattern") or {}
        if not (fits(patterns, dict) and fits([config.get("lora_alpha", 0), *patterns.values()], list[float])
                and all(map(_harmless, patterns))):
            raise UserError(f"{place}: its alpha cannot be read ({patterns or config['lora_alpha']}); only "
                            "numbers, and names with few wildcards, are supported")
    return settings


def _harmless(pattern: str) -> bool:
    """Whether an untrusted regular expression compiles, and matches a module's name in little time."""
    try:
        re.compile(BY_END.format(pattern))
    except (re.error, RecursionError, OverflowError):
        return False
    return re.search(r"\)[*+?{]", pattern) is None and len(re.findall(r"[*+{]", pattern)) <= 3


def _layer(file: Path, module: str, parts: dict[str, Tensor], settings: Settings) -> Layer:
    """One module's tensors and alpha. Raises UserError where they are not a LoRA's."""
    A, B = parts.get("A"), parts.get("B")
    if A is None or B is None:
        raise UserError(f"{file}: {module} has only one of its two LoRA tensors; copy it again")
    if (A.ndim not in (2, 4) or B.ndim != A.ndim or B.shape[1] != A.shape[0] or not A.numel()
            or B.numel() != len(B) * len(A) or not A.is_floating_point() or not B.is_floating_point()):
        raise UserError(f"{file}: {module} has LoRA tensors {A.dtype} {tuple(A.shape)} and {B.dtype} "
                        f"{tuple(B.shape)}, which do not fit each other")
    if not (A.float().isfinite().all() and B.float().isfinite().all()):
        raise UserError(f"{file}: {module} has LoRA tensors that are not finite; did its training diverge?")
    component, _, name = module.partition(".")
    try:
        alpha = _alpha(name, parts.get("alpha"), settings.get(component, {}), len(A))
        if not math.isfinite(alpha):
            raise ValueError(f"it is {alpha}")
    except (RuntimeError, ValueError) as error:  # of several numbers, or none
        raise UserError(f"{file}: the alpha of {module} cannot be read ({error}); copy it again") from error
    return Layer(A, B, alpha or float(len(A)))  # no alpha, or 0, means the rank


def _alpha(name: str, own: Tensor | None, settings: dict[str, Any], rank: int) -> float:
    """A module's alpha: its own tensor's, else from peft's settings; 0 where neither has it."""
    if own is not None:
        return float(own.item())
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((value for pattern, value in patterns.items()
                  if re.fullmatch(BY_END.format(pattern), name)), settings.get("lora_alpha", 0))
    # rsLoRA (arXiv 2312.03732) scales by alpha / sqrt(rank).
    return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1)
