"""Published weights read into UNet, VAE and ControlNet: from a hub id, a folder in diffusers layout, or an
original file.

Only safetensors are read: a pickle can run code. Loading is strict: every tensor of the module comes from the
file, and every tensor of the file has its place. A fresh download is held against the hub's SHA-256, once;
afterwards it comes from huggingface-hub's cache without any request, and at every opening safetensors itself
checks that header and file length agree.
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

from errors import UserError
from sd.controlnet import ControlNet, ControlNetConfig
from sd.hub import fetch_first
from sd.parts import AUTOENCODER, CONTROLNET, TEXT, UNET, Part, read_config
from sd.tensors import PICKLES, filled, keys_by_name, shapes_in
from sd.text import TextEncoder, read_tokenizer
from sd.unet import UNet, UNetConfig
from sd.vae import VAE

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING_BASE = "stable-diffusion-v1-5/stable-diffusion-inpainting"  # nine channels; in fp16 only
REVISIONS = {DEFAULT_BASE: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
             INPAINTING_BASE: "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb"}
TINY = Path(__file__).resolve().parent.parent / "tiny"
TOKENIZER = ("special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


class PartMissing(UserError):
    """A model that does not hold the part asked for."""


class WrongChannels(UserError):
    """A model that takes another number of input channels than is needed."""


def load_unet(base: str, *, device: torch.device | str, dtype: torch.dtype, in_channels: int = 4,
              folder: str = "unet", precise: tuple[str, ...] = ()) -> UNet:
    """The frozen UNet of `base`, in eval mode; `folder` is where it lies in diffusers layout.

    precise: endings of the names of layers that stay in fp32, for something is to be added to them.

    base: "tiny", a folder in diffusers layout, one original .safetensors file, or a hub id (owner/name or
    owner/name@revision). Raises UserError where it cannot be had, is damaged, is not of SD 1.5's
    architecture, and WrongChannels where it takes another number of them than `in_channels`.
    """
    return _load(UNET._replace(folder=folder), base, {"in_channels": in_channels}, device, dtype, precise)


def load_vae(base: str, *, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The frozen VAE of `base`, in eval mode; `base` and errors as for load_unet.

    A fine-tune may come without a VAE: then it is DEFAULT_BASE's, and a line on stderr says so.
    """
    return _load_or_default(AUTOENCODER, base, {"in_channels": 3}, device, dtype)


def load_text_encoder(base: str, *, dim: int, device: torch.device | str) -> TextEncoder:
    """The frozen text encoder of `base`, whose states are (B, N, dim), in fp32; errors as for load_unet.

    A fine-tune may come without it or its tokenizer: then it is DEFAULT_BASE's, as for load_vae.
    """
    clip = _load_or_default(TEXT, base, {"hidden_size": dim}, device, torch.float32)
    return TextEncoder(clip, read_tokenizer(_tokenizer(base)))


def load_controlnet(init: str, config: UNetConfig, *, condition_channels: int, device: torch.device | str,
                    dtype: torch.dtype) -> ControlNet:
    """The frozen published ControlNet `init`, in eval mode, for a UNet of `config`.

    init: a folder in diffusers layout, one original .safetensors file, or a hub id, as for load_unet. Raises
    UserError where it cannot be had, is damaged, or was made for another UNet or kind of condition.
    """
    wanted = dataclasses.asdict(ControlNetConfig(**dataclasses.asdict(config) | {"in_channels": 4},
                                                 conditioning_channels=condition_channels))
    return _load(CONTROLNET, init, wanted, device, dtype)


def fingerprint(model: UNet | ControlNet) -> str:
    """16 hex digits: the same for one model in any file layout and precision, others for another one.

    Only signs enter. Rounding to fp16 or bf16, in the file or at loading, never changes one, while even a
    light fine-tuning flips some of two million. They are of layers whose weights all adapters leave alone.
    """
    digest = hashlib.blake2b(digest_size=8)
    layers = [model.conv_in, model.time_embedding.linear_1, model.time_embedding.linear_2]
    for layer in [*layers, model.conv_out] if isinstance(model, UNet) else layers:
        digest.update(torch.signbit(layer.weight.detach()).cpu().numpy().tobytes())
    return digest.hexdigest()


def _load(part: Part, base: str, wanted: dict[str, Any], device: torch.device | str,
          dtype: torch.dtype, precise: tuple[str, ...] = ()) -> Any:
    """One part of `base`, from wherever it is, if its config has what is `wanted`."""
    if Path(base).is_file():
        file = Path(base)
        shapes = shapes_in(file)
        names = _original_names(part, file, shapes)
        config, shape = part.config, shapes.get(names.get(part.conv_in, ""), [])
        if len(shape) == 4:  # the inpainting model differs in nothing else
            config = dataclasses.replace(config, in_channels=shape[1])
        _check_config(part, base, config, wanted)
    else:
        find, folder = _finder(part, base), PurePosixPath(part.folder)
        config_file = find([str(folder / "config.json")])
        config = read_config(part, config_file) if config_file else part.config
        names = [f"{part.weights}{variant}.safetensors" for variant in ("", ".fp16")]
        if config_file:
            _check_config(part, base, config, wanted)  # before gigabytes are downloaded
        found = find([str(folder / name) for name in names])
        if found is None:
            kind = UserError if config_file else PartMissing
            raise kind(f"{part.flag} {base}: no {folder / names[0]} (nor {names[1]}) in it; give a model in "
                       "diffusers layout with safetensors: pickles (.bin) are not read")
        file, shapes = found, shapes_in(found)
        names = keys_by_name(file, {key: part.name(key) for key in shapes})
    return filled(part, config, file, names, shapes, device, dtype, precise)


def _load_or_default(part: Part, base: str, wanted: dict[str, Any], device: torch.device | str,
                     dtype: torch.dtype) -> Any:
    """One part of `base`, or of DEFAULT_BASE where `base` comes without it."""
    try:
        return _load(part, base, wanted, device, dtype)
    except PartMissing:
        print(f"{base}: holds no {part.title}, taking that of {DEFAULT_BASE}", file=sys.stderr)
        return _load(part, DEFAULT_BASE, wanted, device, dtype)


def _tokenizer(base: str) -> Path:
    """The folder with the tokenizer of `base`, or of DEFAULT_BASE where `base` comes without one."""
    if not Path(base).is_file():
        find = _finder(TEXT, base)
        found = {name: find([f"tokenizer/{name}"]) for name in TOKENIZER}
        if found["tokenizer_config.json"] and (found["tokenizer.json"] or found["merges.txt"]):
            return found["tokenizer_config.json"].parent
    if base == DEFAULT_BASE:
        raise UserError(f"--base {base}: no tokenizer/tokenizer_config.json with vocab.json and merges.txt")
    print(f"{base}: holds no tokenizer, taking that of {DEFAULT_BASE}", file=sys.stderr)
    return _tokenizer(DEFAULT_BASE)


def _finder(part: Part, base: str) -> Callable[[list[str]], Path | None]:
    """What finds the first existing one of some files of `base`, a folder or a hub id."""
    folder = TINY if base == "tiny" else Path(base)
    if folder.is_dir():
        return lambda names: next((folder / name for name in names if (folder / name).is_file()), None)
    hub_id = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(@\w[\w.-]*(/\w[\w.-]*)*)?", base)
    if hub_id is None or folder.suffix in (".safetensors", *PICKLES):
        raise UserError(f"{part.flag} {base}: no such file or folder, and not a hub id (owner/name)")
    repo = hub_id[1]
    revision = hub_id[2][1:] if hub_id[2] else REVISIONS.get(repo, "main")
    return lambda names: fetch_first(repo, revision, names)


def _check_config(part: Part, base: str, config: Any, wanted: dict[str, Any]) -> None:
    """Raises UserError, before anything is loaded, where `config` is not as `wanted`."""
    for key, value in wanted.items():
        if getattr(config, key) != value:
            fitting = {("unet", 4): f"; {DEFAULT_BASE} has that",
                       ("unet", 9): f"; {INPAINTING_BASE} has that"}.get((part.title, value), "")
            kind = WrongChannels if key == "in_channels" else UserError
            raise kind(f"{part.flag} {base}: its {part.title}'s {key} is {getattr(config, key)}, "
                       f"{value} is needed here{fitting}")


def _original_names(part: Part, file: Path, shapes: dict[str, list[int]]) -> dict[str, str]:
    """Module's key -> file's key, for the tensors of an original file that belong to `part`."""
    for prefix in part.prefixes:
        keys = [key for key in shapes if key.startswith(prefix)]
        if keys:
            return keys_by_name(file, {key: part.original_name(key.removeprefix(prefix)) for key in keys})
    raise PartMissing(f"{file}: not an original SD 1.5 file, for no tensor is called {part.prefixes[0]}...; "
                      "give such a file, or the folder that holds unet/ and vae/")
