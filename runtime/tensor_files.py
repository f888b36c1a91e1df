"""Safetensors files. Those of this project carry a checksum in their header, which reading verifies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, uint8

from runtime.errors import UserError
from runtime.files import write_atomic

CHECKSUM = "sha256"  # its key in the header's JSON


def save_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one safetensors file with these header entries, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata))


def save_tensors(path: Path, tensors: dict[str, Tensor], name: str, about: dict[str, Any]) -> None:
    """Write a safetensors file whose only header entry, `name`, is `about` and a checksum as JSON.

    One entry, because safetensors writes several in random order, and equal runs shall leave equal files.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    header = json.dumps({**about, CHECKSUM: checksum(contiguous, about)})
    save_safetensors(path, contiguous, {name: header})


def checksum(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    """SHA-256 over `about` and each tensor's name, type, shape and bytes."""
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([about, shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(uint8).numpy().data)
    return digest.hexdigest()


def read_own(path: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and `about` of a file that save_tensors wrote. Raises UserError where it is damaged."""
    tensors, header = read_tensors(path)
    return tensors, verified(path, tensors, header.get(name, ""))


def verified(path: Path, tensors: dict[str, Tensor], text: str) -> dict[str, Any]:
    """The `about` in the header entry `text`. Raises UserError where the checksum does not match."""
    try:
        about = json.loads(text)
        right = about.pop(CHECKSUM) == checksum(tensors, about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its header cannot be read ({error!r}); was it "
                        "written by another version?") from error
    if not right:
        raise UserError(f"{path}: damaged (its checksum does not match); copy it again, or delete it and run "
                        "the command that made it")
    return about


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of a safetensors file. Raises UserError for a damaged one."""
    with open(path, "rb"):
        pass  # raises the operating system's error, where there is one, with the file's name
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short ({error}); copy it again, or run the command that "
                        "made it") from error
