"""adapter.safetensors: all that a run trained, with a header that describes it. Written, read, loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

import lora
from checkpoints.metadata import Header, read_header
from runtime.errors import UserError
from runtime.suggestions import nearest
from runtime.tensor_files import read_tensors, save_tensors, verified
from sd.unet import UNet

WIDE = "unet.conv_in.weight"  # trained where a base was widened to take masks (sd/pretrained/inpainting.py)


def trained_tensors(unet: UNet, context: nn.Module) -> dict[str, Tensor]:
    """All that training changes, by its name in the checkpoint: the live tensors, no copies."""
    tensors = {f"unet.{name}": tensor for name, tensor in lora.lora_state(unet).items()}
    if unet.conv_in.weight.requires_grad:
        tensors[WIDE] = unet.conv_in.weight.detach()
    return tensors | {f"class_{name}": tensor.detach() for name, tensor in context.state_dict().items()}


def save_adapter(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write a checkpoint, whole or not at all."""
    save_tensors(path, tensors, "adapter", asdict(header))


def find_adapter(path: Path, flag: str = "--ckpt") -> Path:
    """The checkpoint file of `path`, a file or a run folder. Raises UserError, naming the flag that gave it,
    where it is missing."""
    file = path / "adapter.safetensors" if path.is_dir() else path
    if not file.is_file():
        runs = [run.parent.name for run in path.parent.glob("*/adapter.safetensors")]
        close = None if path.exists() else nearest(path.name, runs)
        raise UserError(f"{file}: no such checkpoint; " + (
            f"did you mean {flag} {path.parent / close}?" if close else
            f"give {flag} a run folder that holds one, or its adapter.safetensors"))
    return file


def read_adapter(path: Path) -> tuple[dict[str, Tensor], Header]:
    """The tensors and header of a checkpoint file. Raises UserError for a damaged file or one of others."""
    tensors, metadata = read_tensors(path)
    if "adapter" not in metadata:
        raise UserError(f"{path}: no checkpoint of this project; give a run folder, or the "
                        "adapter.safetensors in it")
    header = read_header(path, verified(path, tensors, metadata["adapter"]))
    rows = tensors.get("class_embedding.weight")
    if rows is None or rows.shape[:1] != (len(header.classes),):  # bounds the memory that a header can demand
        raise UserError(f"{path}: its class embedding does not have {len(header.classes)} rows; copy it "
                        "again")
    return tensors, header


def load_adapter(path: Path, header: Header, tensors: dict[str, Tensor], unet: UNet | None,
                 context: nn.Module) -> None:
    """Fill and freeze the checkpoint's `context` and, unless None, inject its LoRA into `unet`.

    Raises UserError naming `path` where a tensor is missing, left over or of another shape.
    """
    own = {prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()
                    if name.startswith(prefix) and name != WIDE} for prefix in ("unet.", "class_")}
    try:
        if unet is not None:
            lora.inject(unet, header.rank, header.alpha, dropout=0.0)
            if WIDE in tensors:
                unet.conv_in.weight.data.copy_(tensors[WIDE])
            lora.load_lora_state(unet, own["unet."])
        context.load_state_dict(own["class_"])
        context.requires_grad_(False)
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this model: {error}") from error
