"""Published weights read into UNet, VAE and ControlNet: from a hub id, a folder in diffusers layout, or an
original file.

Only safetensors are read: a pickle can run code. Loading is strict: every tensor of the module comes from the
file, and every tensor of the file has its place. A fresh download is held against the hub's SHA-256, once;
afterwards it comes from huggingface-hub's cache without any request, and at every opening safetensors itself
checks that header and file length agree.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from errors import UserError
from sd.controlnet import ControlNet, ControlNetConfig
from sd.hub import fetch_first
from sd.parts import AUTOENCODER, CONTROLNET, UNET, Part, read_config
from sd.unet import UNet, UNetConfig
from sd.vae import VAE

DEFAULT_BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING_BASE = "stable-diffusion-v1-5/stable-diffusion-inpainting"  # nine channels; in fp16 only
REVISIONS = {DEFAULT_BASE: "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
             INPAINTING_BASE: "8a4288a76071f7280aedbdb3253bdb9e9d5d84bb"}
TINY = Path(__file__).resolve().parent.parent / "tiny"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
PICKLES = (".ckpt", ".bin", ".pt", ".pth")
BATCH = 16  # tensors read between two openings of a file


class PartMissing(UserError):
    """An original file that does not hold the part asked for."""


class WrongChannels(UserError):
    """A model that takes another number of input channels than is needed."""


def load_unet(base: str, *, device: torch.device | str, dtype: torch.dtype, in_channels: int = 4,
              folder: str = "unet") -> UNet:
    """The frozen UNet of `base`, in eval mode; `folder` is where it lies in diffusers layout.

    base: "tiny", a folder in diffusers layout, one original .safetensors file, or a hub id (owner/name or
    owner/name@revision). Raises UserError where it cannot be had, is damaged, is not of SD 1.5's
    architecture, and WrongChannels where it takes another number of them than `in_channels`.
    """
    return _load(UNET._replace(folder=folder), base, {"in_channels": in_channels}, device, dtype)


def load_vae(base: str, *, device: torch.device | str, dtype: torch.dtype) -> VAE:
    """The frozen VAE of `base`, in eval mode; `base` and errors as for load_unet.

    An original file may come without a VAE: then it is DEFAULT_BASE's, and a line on stderr says so.
    """
    try:
        return _load(AUTOENCODER, base, {"in_channels": 3}, device, dtype)
    except PartMissing:
        print(f"{base}: holds no VAE, taking that of {DEFAULT_BASE}", file=sys.stderr)
        return _load(AUTOENCODER, DEFAULT_BASE, {"in_channels": 3}, device, dtype)


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
          dtype: torch.dtype) -> Any:
    """One part of `base`, from wherever it is, if its config has what is `wanted`."""
    if Path(base).is_file():
        file = Path(base)
        shapes = _shapes(file)
        names = _original_names(part, file, shapes)
        config, shape = part.config, shapes.get(names.get(part.conv_in, ""), [])
        if len(shape) == 4:  # the inpainting model differs in nothing else
            config = dataclasses.replace(config, in_channels=shape[1])
        _check_config(part, base, config, wanted)
    else:
        find, folder = _finder(part, base), PurePosixPath(part.folder)
        config_file = find([str(folder / "config.json")])
        config = read_config(part, config_file) if config_file else part.config
        _check_config(part, base, config, wanted)  # before gigabytes are downloaded
        found = find([str(folder / name) for name in WEIGHTS])
        if found is None:
            raise UserError(f"{part.flag} {base}: no {folder / WEIGHTS[0]} (nor {WEIGHTS[1]}) in it; give a "
                            "model in diffusers layout with safetensors: pickles (.bin) are not read")
        file, shapes = found, _shapes(found)
        names = _inverse(file, {key: part.name(key) for key in shapes})
    return _fill(part, config, file, names, shapes, device, dtype)


def _finder(part: Part, base: str) -> Callable[[list[str]], Path | None]:
    """What finds the first existing one of some files of `base`, a folder or a hub id."""
    folder = TINY if base == "tiny" else Path(base)
    if folder.is_dir():
        return lambda names: next((folder / name for name in names if (folder / name).is_file()), None)
    hub_id = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(@[\w./-]+)?", base)
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


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The file's tensors. Raises UserError for a pickle and for what is no whole safetensors file."""
    if file.suffix in PICKLES:
        raise UserError(f"{file}: a pickle can run code when it is read, so it is refused; take the "
                        "model's .safetensors file (SD 1.5: v1-5-pruned-emaonly.safetensors, on the hub in "
                        f"{DEFAULT_BASE})")
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as raw:  # where the system is the reason, this raises in the system's words
            pointer = raw.read(20).startswith(b"version https://git-")
        advice = ("it is a git-lfs pointer: run `git lfs pull` in its folder" if pointer else
                  "it is truncated, damaged or of another format: fetch it again")
        raise UserError(f"{file}: not a whole safetensors file ({error}); {advice}") from error


def _shapes(file: Path) -> dict[str, list[int]]:
    """Key -> shape, from the header alone."""
    with _opened(file) as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (no dict)


def _original_names(part: Part, file: Path, shapes: dict[str, list[int]]) -> dict[str, str]:
    """Module's key -> file's key, for the tensors of an original file that belong to `part`."""
    for prefix in part.prefixes:
        keys = [key for key in shapes if key.startswith(prefix)]
        if keys:
            return _inverse(file, {key: part.original_name(key.removeprefix(prefix)) for key in keys})
    raise PartMissing(f"{file}: not an original SD 1.5 file, for no tensor is called {part.prefixes[0]}...; "
                      "give such a file, or the folder that holds unet/ and vae/")


def _inverse(file: Path, names: dict[str, str]) -> dict[str, str]:
    inverse = {name: key for key, name in names.items()}
    if len(inverse) < len(names):
        twice = [name for key, name in names.items() if inverse[name] != key]
        raise UserError(f"{file}: holds {_few(twice)} under two names each; fetch it again")
    return inverse


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _check_tensors(part: Part, file: Path, names: dict[str, str], shapes: dict[str, list[int]],
                   wanted: dict[str, list[int]]) -> None:
    """Raises UserError where the file lacks a tensor, has one too many, or has one of another shape."""
    faults = []
    if missing := wanted.keys() - names.keys():
        faults.append(f"lacks {len(missing)} ({_few(missing)})")
    if unexpected := names.keys() - wanted.keys():
        faults.append(f"has {len(unexpected)} too many ({_few([names[name] for name in unexpected])})")
    wrong = []
    for name in wanted.keys() & names.keys():
        shape = shapes[names[name]]
        # The original VAE's attention is made of 1x1 convolutions: linear layers with two axes too many.
        if shape != wanted[name] and not (len(wanted[name]) == 2 and shape == [*wanted[name], 1, 1]):
            wrong.append(f"{names[name]} {shape} for {wanted[name]}")
    if wrong:
        faults.append(f"has {len(wrong)} of another shape ({_few(wrong)})")
    if faults:
        raise UserError(f"{file}: of the {len(wanted)} tensors of SD 1.5's {part.title} it "
                        f"{' and '.join(faults)}; it is incomplete or of another architecture: give another")


def _fill(part: Part, config: Any, file: Path, names: dict[str, str], shapes: dict[str, list[int]],
          device: torch.device | str, dtype: torch.dtype) -> Any:
    """A module built without memory, then given the file's tensors one by one, in `dtype` on `device`."""
    try:
        with torch.device("meta"):
            module = part.module(config)
    except ValueError as error:  # such as widths that norm_num_groups does not divide
        raise UserError(f"{file.parent / 'config.json'}: {error}; give another model") from error
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    _check_tensors(part, file, names, shapes, wanted)
    state, order = {}, list(wanted)
    for start in range(0, len(order), BATCH):
        # Opened anew each time, for a mapped file counts as this process's memory until it is closed. Copied,
        # not mapped, so that a file overwritten later neither changes nor kills a training under way.
        with _opened(file) as tensors:
            for name in order[start:start + BATCH]:
                tensor = tensors.get_tensor(names[name])
                if not tensor.is_floating_point():
                    raise UserError(f"{file}: {names[name]} is {tensor.dtype}, so the model is quantised; "
                                    "give it in fp16 or fp32")
                tensor = tensor.reshape(wanted[name])
                # So convolutions compute, and hand on, channels last: quicker on CPUs, no copies on GPUs.
                layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                state[name] = tensor.to(device, dtype, copy=True, memory_format=layout)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
