"""Files written whole or not at all: a temporary name beside the target, fsync, rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from errors import UserError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then rename it to `path`. Until then the old file stays intact.

    Raises UserError, naming `path`, where the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        temporary.unlink(missing_ok=True)
        # safetensors reports a full disk as an exception of its own whose text holds the system's words.
        text = str(error).lower()
        if isinstance(error, OSError) or "os error" in text or "i/o error" in text:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path}: could not be written ({reason}); "
                            "free some space or choose another --out, then run the command again") from error
        raise


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """One safetensors file with `metadata` in its header."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"format": "pt", **metadata}
    write_atomic(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def save_image(path: Path, image: Image.Image) -> None:
    """One PNG."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))


def save_json(path: Path, value: Any) -> None:
    """One JSON file, indented, keys in the order given."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n"))
