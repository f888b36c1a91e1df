"""Loads a safetensors file into a module, strictly: no tensor is missing, none is left over."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runtime.errors import UserError
from sd.pretrained.components import Component

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
BATCH = 16  # tensors read each time a file is opened


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The open file. Raises UserError for a pickle and for a damaged or foreign file."""
    if file.suffix in PICKLES:
        raise UserError(f"{file}: a pickle can run code when it is read, so it is refused; give the "
                        "model's .safetensors file (SD 1.5: v1-5-pruned-emaonly.safetensors, on the hub in "
                        "stable-diffusion-v1-5/stable-diffusion-v1-5)")
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as raw:  # a file that cannot be opened raises the system's error here
            pointer = raw.read(20).startswith(b"version https://git-")
        advice = ("it is a git-lfs pointer: run `git lfs pull` in its folder" if pointer else
                  "it is truncated, damaged or of another format: fetch it again")
        raise UserError(f"{file}: not a whole safetensors file ({error}); {advice}") from error


def read_header(file: Path) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Each key's shape, and the metadata, from the header alone."""
    with _opened(file) as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (no dict)
        return shapes, tensors.metadata() or {}


def keys_by_name(file: Path, found: dict[str, str | None]) -> dict[str, str]:
    """Module's key -> file's key. found: file's key -> module's key, or None if it is not needed.

    Raises UserError for a module's key that is found twice.
    """
    names = {key: name for key, name in found.items() if name is not None}
    inverse = {name: key for key, name in names.items()}
    if len(inverse) < len(names):
        twice = [name for key, name in names.items() if inverse[name] != key]
        raise UserError(f"{file}: holds {_few(twice)} under two names each; fetch it again")
    return inverse


def _few(names: Collection[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _check_tensors(component: Component, file: Path, names: dict[str, str], shapes: dict[str, list[int]],
                   wanted: dict[str, list[int]]) -> None:
    """Raise UserError for a tensor that is missing, not wanted, or of another shape."""
    faults = []
    if missing := wanted.keys() - names.keys():
        faults.append(f"lacks {len(missing)} ({_few(missing)})")
    if unexpected := names.keys() - wanted.keys():
        faults.append(f"has {len(unexpected)} too many ({_few([names[name] for name in unexpected])})")
    wrong = []
    for name in wanted.keys() & names.keys():
        shape = shapes[names[name]]
        # The original VAE's attention has 1x1 convolutions in place of linear layers.
        if shape != wanted[name] and not (len(wanted[name]) == 2 and shape == [*wanted[name], 1, 1]):
            wrong.append(f"{names[name]} {shape} for {wanted[name]}")
    if wrong:
        faults.append(f"has {len(wrong)} of another shape ({_few(wrong)})")
    if faults:
        raise UserError(f"{file}: of the {len(wanted)} tensors of SD 1.5's {component.title} it "
                        f"{' and '.join(faults)}; it is incomplete or of another architecture: give another")


def load_module(component: Component, config: Any, file: Path, names: dict[str, str],
                shapes: dict[str, list[int]], device: torch.device | str, dtype: torch.dtype,
                precise: tuple[str, ...] = ()) -> Any:
    """A frozen module in eval mode with the file's tensors, in `dtype` on `device`.

    names: module's key -> file's key. precise: endings of names of layers that stay in fp32.
    """
    try:
        with torch.device("meta"):
            module = component.module(config)
    except ValueError as error:  # such as widths that norm_num_groups does not divide
        raise UserError(f"{file.parent / 'config.json'}: {error}; give another model") from error
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    _check_tensors(component, file, names, shapes, wanted)
    state: dict[str, torch.Tensor] = {}
    order = list(wanted)
    for start in range(0, len(order), BATCH):
        # A mapped file counts as memory of this process until it is closed, so it is opened for each batch.
        # Tensors are copied: overwriting the file must not change or crash a running training.
        with _opened(file) as tensors:
            for name in order[start:start + BATCH]:
                tensor = tensors.get_tensor(names[name])
                if not tensor.is_floating_point():
                    raise UserError(f"{file}: {names[name]} is {tensor.dtype}, so the model is quantised; "
                                    "give it in fp16 or fp32")
                tensor = tensor.reshape(wanted[name])
                # Channels last: convolutions are faster on CPUs and need no copies on GPUs.
                layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                kind = torch.float32 if name.rpartition(".")[0].endswith(precise) else dtype
                state[name] = tensor.to(device, kind, copy=True, memory_format=layout)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
