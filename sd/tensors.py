"""The tensors of a safetensors file put into a module, strictly: each has its place, no place stays empty."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from errors import UserError
from sd.parts import Part

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
BATCH = 16  # tensors read between two openings of a file


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The file's tensors. Raises UserError for a pickle and for what is no whole safetensors file."""
    if file.suffix in PICKLES:
        raise UserError(f"{file}: a pickle can run code when it is read, so it is refused; take the "
                        "model's .safetensors file (SD 1.5: v1-5-pruned-emaonly.safetensors, on the hub in "
                        "stable-diffusion-v1-5/stable-diffusion-v1-5)")
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        with open(file, "rb") as raw:  # where the system is the reason, this raises in the system's words
            pointer = raw.read(20).startswith(b"version https://git-")
        advice = ("it is a git-lfs pointer: run `git lfs pull` in its folder" if pointer else
                  "it is truncated, damaged or of another format: fetch it again")
        raise UserError(f"{file}: not a whole safetensors file ({error}); {advice}") from error


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Key -> shape, from the header alone."""
    with _opened(file) as tensors:
        return {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (no dict)


def keys_by_name(file: Path, found: dict[str, str | None]) -> dict[str, str]:
    """Module's key -> file's key, from the reverse, where None is "not needed". Raises UserError."""
    names = {key: name for key, name in found.items() if name is not None}
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


def filled(part: Part, config: Any, file: Path, names: dict[str, str], shapes: dict[str, list[int]],
          device: torch.device | str, dtype: torch.dtype, precise: tuple[str, ...] = ()) -> Any:
    """A module built without memory, then given the file's tensors one by one, in `dtype` on `device`.

    precise: endings of layers' names whose tensors are fp32 instead.
    """
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
                kind = torch.float32 if name.rpartition(".")[0].endswith(precise) else dtype
                state[name] = tensor.to(device, kind, copy=True, memory_format=layout)
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
