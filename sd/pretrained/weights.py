"""Loads published weights into UNet, VAE, ControlNet and text encoder.

A model is a hub id, a folder in diffusers layout, or one original file. Only safetensors are read: a pickle
can run code. Loading is strict: every tensor of the module comes from the file, and every tensor of the file
is used. A download is checked against the hub's SHA-256 once and later taken from huggingface-hub's cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from runtime.errors import UserError
from sd.controlnet import ControlNet, ControlNetConfig
from sd.pretrained.components import AUTOENCODER, CONTROLNET, TEXT, UNET, Component, read_config
from sd.pretrained.hub import fetch_first
from sd.pretrained.noise_schedule import check_scheduler_config, check_single_file
from sd.pretrained.tensors import PICKLES, keys_by_name, load_module, read_header
from sd.pretrained.text_encoder import TextEncoder, read_tokenizer
from sd.unet import UNet, UNetConfig
from sd.vae import VAE

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING_BASE = "stable-diffusion-v1-5/stable-diffusion-inpainting"  # nine channels; in fp16 only
REVISIONS = {DEFAULT_BASE: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
             INPAINTING_BASE: "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb"}
TINY = Path(__file__).resolve().parents[2] / "tiny"
TOKENIZER = ("special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


class ComponentMissing(UserError):
    """A model without the component asked for."""


class WrongChannels(UserError):
    """A model with another number of input channels than needed."""


def load_unet(base: str, *, device: torch.device | str, dtype: torch.dtype, in_channels: int = 4,
              folder: str = "unet", precise: tuple[str, ...] = ()) -> UNet:
    """The frozen UNet of `base`, in eval mode.

    base: "tiny", a folder in diffusers layout, one original .safetensors file, or a hub id (owner/name or
    owner/name@revision). folder: the UNet's subfolder in diffusers layout. precise: endings of names of
    layers that stay in fp32, because weights will be added to theirs. Raises UserError if the model cannot be
    found, is damaged, or differs from SD 1.5 in architecture, prediction type or noise schedule;
    WrongChannels if it does not have `in_channels`.
    """
    return _load(UNET._replace(folder=folder), base, {"in_channels": in_channels}, device, dtype, precise)


def load_vae(base: str, *, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The frozen VAE of `base`, in eval mode; `base` and errors as for load_unet.

    For a fine-tune without a VAE it is DEFAULT_BASE's, and a line on stderr says so.
    """
    return _load_or_default(AUTOENCODER, base, {"in_channels": 3}, device, dtype)


def load_text_encoder(base: str, *, dim: int, device: torch.device | str) -> TextEncoder:
    """The frozen text encoder of `base` with states (B, N, dim), in fp32; errors as for load_unet.

    For a fine-tune without it, or without a tokenizer, that is DEFAULT_BASE's, as for load_vae.
    """
    clip = _load_or_default(TEXT, base, {"hidden_size": dim}, device, torch.float32)
    return TextEncoder(clip, read_tokenizer(_tokenizer(base)))


def load_controlnet(init: str, config: UNetConfig, *, condition_channels: int, device: torch.device | str,
                    dtype: torch.dtype) -> ControlNet:
    """The frozen published ControlNet `init`, in eval mode, for a UNet of `config`.

    init: as `base` of load_unet. Raises UserError if it cannot be found, is damaged, or was made for another
    UNet or kind of condition.
    """
    wanted = dataclasses.asdict(ControlNetConfig(**dataclasses.asdict(config) | {"in_channels": 4},
                                                 conditioning_channels=condition_channels))
    return _load(CONTROLNET, init, wanted, device, dtype)


def fingerprint(model: UNet | ControlNet) -> str:
    """16 hex digits that identify a model in any file layout and precision.

    They hash the signs of about two million weights of layers that no adapter changes. Rounding to fp16 or
    bf16 keeps every sign; even light fine-tuning flips some.
    """
    digest = hashlib.blake2b(digest_size=8)
    weights = [model.conv_in.weight, model.time_embedding.linear_1.weight,
               model.time_embedding.linear_2.weight]
    for weight in [*weights, model.conv_out.weight] if isinstance(model, UNet) else weights:
        digest.update(torch.signbit(weight.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()


def _load(component: Component, base: str, wanted: dict[str, Any], device: torch.device | str,
          dtype: torch.dtype, precise: tuple[str, ...] = ()) -> Any:
    """One component of `base`, found wherever it is. wanted: values that its config must have."""
    model = f"{component.flag} {base}"
    if Path(base).is_file():
        file = Path(base)
        shapes, metadata = read_header(file)
        check_single_file(model, file, shapes, metadata)
        keys = _original_keys(component, file, shapes)
        config, shape = component.config, shapes.get(keys.get(component.conv_in, ""), [])
        if len(shape) == 4:  # the inpainting model differs only in this
            config = dataclasses.replace(config, in_channels=shape[1])
        _check_config(component, base, config, wanted)
    else:
        find, folder = _finder(component, base), PurePosixPath(component.folder)
        config_file = find([str(folder / "config.json")])
        config = read_config(component, config_file) if config_file else component.config
        if config_file:
            _check_config(component, base, config, wanted)  # before gigabytes are downloaded
        if component.title == UNET.title and base not in REVISIONS:
            _check_schedule(model, find)
        names = [f"{component.weights}{variant}.safetensors" for variant in ("", ".fp16")]
        found = find([str(folder / name) for name in names])
        if found is None:
            kind = UserError if config_file else ComponentMissing
            raise kind(f"{model}: no {folder / names[0]} (nor {names[1]}) in it; give a model in diffusers "
                       "layout with safetensors: pickles (.bin) are not read")
        file, (shapes, _) = found, read_header(found)
        keys = keys_by_name(file, {key: component.name(key) for key in shapes})
    return load_module(component, config, file, keys, shapes, device, dtype, precise)


def _check_schedule(model: str, find: Callable[[list[str]], Path | None]) -> None:
    """Raise UserError if the model's scheduler_config.json, where there is one, is not as SD 1.5's."""
    try:
        file = find(["scheduler/scheduler_config.json"])
    except UserError as error:  # the rest is cached, and there is no network
        print(f"{error}. Its prediction type is taken for epsilon", file=sys.stderr)
        return
    if file is not None:
        check_scheduler_config(model, file)


def _load_or_default(component: Component, base: str, wanted: dict[str, Any], device: torch.device | str,
                     dtype: torch.dtype) -> Any:
    """One component of `base`, or DEFAULT_BASE's if `base` has none."""
    try:
        return _load(component, base, wanted, device, dtype)
    except ComponentMissing:
        print(f"{base}: holds no {component.title}, taking that of {DEFAULT_BASE}", file=sys.stderr)
        return _load(component, DEFAULT_BASE, wanted, device, dtype)


def _tokenizer(base: str) -> Path:
    """The folder with the tokenizer of `base`, or with DEFAULT_BASE's if `base` has none."""
    if not Path(base).is_file():
        find = _finder(TEXT, base)
        found = {name: find([f"tokenizer/{name}"]) for name in TOKENIZER}
        if found["tokenizer_config.json"] and (found["tokenizer.json"] or found["merges.txt"]):
            return found["tokenizer_config.json"].parent
    if base == DEFAULT_BASE:
        raise UserError(f"--base {base}: no tokenizer/tokenizer_config.json with vocab.json and merges.txt")
    print(f"{base}: holds no tokenizer, taking that of {DEFAULT_BASE}", file=sys.stderr)
    return _tokenizer(DEFAULT_BASE)


def _finder(component: Component, base: str) -> Callable[[list[str]], Path | None]:
    """A function that finds the first existing one of some files of `base`, a folder or a hub id."""
    folder = TINY if base == "tiny" else Path(base)
    if folder.is_dir():
        return lambda names: next((folder / name for name in names if (folder / name).is_file()), None)
    hub_id = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(@\w[\w.-]*(/\w[\w.-]*)*)?", base)
    if hub_id is None or folder.suffix in (".safetensors", *PICKLES):
        raise UserError(f"{component.flag} {base}: no such file or folder, and not a hub id (owner/name); "
                        f"Stable Diffusion 1.5 is {DEFAULT_BASE}, the embedded model tiny")
    repo = hub_id[1]
    revision = hub_id[2][1:] if hub_id[2] else REVISIONS.get(repo, "main")
    return lambda names: fetch_first(repo, revision, names)


def _check_config(component: Component, base: str, config: Any, wanted: dict[str, Any]) -> None:
    """Raise UserError, before anything is loaded, if `config` is not as `wanted`."""
    for key, value in wanted.items():
        if getattr(config, key) != value:
            fitting = {("unet", 4): f"; {DEFAULT_BASE} has that",
                       ("unet", 9): f"; {INPAINTING_BASE} has that"}.get((component.title, value), "")
            kind = WrongChannels if key == "in_channels" else UserError
            raise kind(f"{component.flag} {base}: its {component.title}'s {key} is {getattr(config, key)}, "
                       f"{value} is needed here{fitting}")


def _original_keys(component: Component, file: Path, shapes: dict[str, list[int]]) -> dict[str, str]:
    """Module's key -> file's key, for the component's tensors in an original file."""
    for prefix in component.prefixes:
        keys = [key for key in shapes if key.startswith(prefix)]
        if keys:
            return keys_by_name(file, {key: component.original_name(key.removeprefix(prefix))
                                       for key in keys})
    raise ComponentMissing(f"{file}: not an original SD 1.5 file: no tensor is called {component.prefixes[0]}"
                           "...; give such a file, or the folder that holds unet/ and vae/")
