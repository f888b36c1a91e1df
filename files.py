"""Files written whole or not at all (a temporary name beside the target, fsync, rename), and rows of JSON.

Tensors carry a checksum in their header, which reading verifies.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from errors import UserError

CHECKSUM = "sha256"  # its name in the headers


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """A block that writes `path`. Raises UserError where the system is the reason that it could not."""
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk as an exception of its own whose text holds the system's words.
        if not isinstance(error, OSError) and "os error" not in str(error).lower():
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: could not be written ({reason}); free some space or choose another --out, "
                        "then run the command again") from error


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`. Until then the old file stays intact.

    Raises UserError, naming `path`, where the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(temporary)
            with contextlib.suppress(OSError):  # safetensors lets only their owner read its files
                os.chmod(temporary, 0o666 & ~umask())
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:  # Ctrl-C as well must not leave the temporary file
            temporary.unlink(missing_ok=True)


def umask() -> int:
    """What is taken from the permissions of new files. To ask for it is to set it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Return when a file, or a folder's list of names, is on the disk and would outlive a power failure."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems cannot
            raise
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], name: str, about: dict[str, Any]) -> None:
    """One safetensors file with `about`, and a checksum of it and all tensors, as JSON under `name` in its
    header. Whole or not at all.

    Nothing beside it: safetensors writes several entries in random order, and equal runs leave equal files.
    """
    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    header = {name: json.dumps({**about, CHECKSUM: _checksum(contiguous, about)})}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def _checksum(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> str:
    """SHA-256 over `about` and the name, type, shape and bytes of each tensor."""
    names = sorted(tensors)
    shapes = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([about, shapes]).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of commands that were killed while they wrote to `folder` or below it."""
    for file in folder.rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", file.name):
            file.unlink()


def read_own(path: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and `about` of a file that save_tensors wrote. Raises UserError where its checksum is wrong."""
    tensors, header = read_tensors(path)
    return tensors, verified(path, tensors, header.get(name, ""))


def verified(path: Path, tensors: dict[str, torch.Tensor], text: str) -> dict[str, Any]:
    """The `about` that save_tensors wrote as `text`. Raises UserError where they, or the tensors, changed."""
    try:
        about = json.loads(text)
        right = about.pop(CHECKSUM) == _checksum(tensors, about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its header cannot be read ({error!r}); was it "
                        "written by another version?") from error
    if not right:
        raise UserError(f"{path}: damaged (its checksum is not the one it was saved with); copy it again, or "
                        "delete it and make it anew")
    return about


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


def save_text(path: Path, text: str) -> None:
    """One file in UTF-8. Names of files, which need not be text, are written as far as they are."""
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def save_json(path: Path, value: Any) -> None:
    """One JSON file, indented, keys in the order given."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line."""
    save_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """One more line. Raises UserError, naming `path`, where it cannot be written."""
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file written by append_row, but for a last line cut short by a kill or a full disk.

    Raises UserError for any other line that is no JSON object.
    """
    *lines, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            if not isinstance(rows[-1], dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged; delete that line") from None
    return rows


def cut_back(path: Path) -> None:
    """Remove a last line cut short, before more rows are appended."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def sha256(path: Path) -> str:
    """The hash, 64 hexadecimal digits, by which records name a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
