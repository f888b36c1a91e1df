"""Files written whole or not at all (a temporary name beside the target, fsync, rename), and rows of JSON."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from errors import UserError


def _unwritable(path: Path, error: BaseException) -> UserError | None:
    """The one line where the system is the reason that `path` could not be written; None for other errors."""
    # safetensors reports a full disk as an exception of its own whose text holds the system's words.
    if not isinstance(error, OSError) and "os error" not in str(error).lower():
        return None
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"{path}: could not be written ({reason}); free some space or choose another --out, "
                     "then run the command again")


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`. Until then the old file stays intact.

    Raises UserError, naming `path`, where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C as well must not leave the temporary file
        if temporary.exists():
            temporary.unlink()
        raise _unwritable(path, error) or error from error


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], name: str, about: dict[str, Any]) -> None:
    """One safetensors file with `about`, as JSON, under `name` in its header.

    Nothing beside it: safetensors writes several entries in random order, and equal runs leave equal files.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    header = {name: json.dumps(about)}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file and the entries of its header. Raises UserError for a damaged one."""
    with open(path, "rb"):
        pass  # where the system is the reason, this raises in the system's words
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or cut short ({error}); copy it again or make it anew") from error


def save_image(path: Path, image: Image.Image) -> None:
    """One PNG."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))


def save_json(path: Path, value: Any) -> None:
    """One JSON file, indented, keys in the order given."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))


def save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(path, lambda temporary: temporary.write_text(text))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line. Raises UserError, naming `path`, where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file written by append_row. A last line cut short, by a kill or a full disk, is removed.

    Raises UserError for any other line that is no JSON object.
    """
    content = path.read_bytes() if path.exists() else b""
    *lines, rest = content.split(b"\n")
    if rest:
        os.truncate(path, len(content) - len(rest))
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            if not isinstance(rows[-1], dict):
                raise ValueError
        except ValueError:
            raise UserError(f"{path}: line {number} is damaged; delete that line") from None
    return rows


def sha256(path: Path) -> str:
    """The hash, 64 hexadecimal digits, by which records name a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
