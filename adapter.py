"""What was trained: the damage-type embedding, and the one self-describing file it shares with the LoRA."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import lora
from errors import UserError
from files import read_tensors, save_tensors, verified
from header import Header, read_header
from seeds import torch_rng

WIDE = "unet.conv_in.weight"  # trained where a base was widened to take masks (sd/inpainting.py)
NULL = -1  # the class id of "no class", which guidance starts from


class ClassContext(nn.Module):
    """Damage-type ids -> the UNet's context: nn.Embedding(classes, tokens * dim), `tokens` tokens a class.

    One token is the recipe. The null class is a row of its own, trained where classes are dropped.
    """

    def __init__(self, classes: int, dim: int, tokens: int = 1, init_std: float = 0.02,
                 seed: int = 0) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Embedding(classes, tokens * dim)
        self.null = nn.Parameter(torch.empty(tokens * dim))
        rng = torch_rng(seed, "class embedding")
        for weight in (self.embedding.weight, self.null):
            nn.init.normal_(weight, std=init_std, generator=rng)

    def forward(self, class_id: Tensor) -> Tensor:
        """class_id (B,) integers, NULL for no class -> context (B, tokens, dim)."""
        row = self.embedding(class_id.clamp(min=0))
        row = torch.where((class_id == NULL)[:, None], self.null, row)
        return row.unflatten(1, (-1, self.dim))


def trained_tensors(unet: nn.Module, context: nn.Module) -> dict[str, Tensor]:
    """Everything that training changes, by its name in the checkpoint. The tensors are live, not copies."""
    tensors = {f"unet.{name}": tensor for name, tensor in lora.lora_state(unet).items()}
    if unet.conv_in.weight.requires_grad:
        tensors[WIDE] = unet.conv_in.weight.detach()
    return tensors | {f"class_{name}": tensor.detach() for name, tensor in context.state_dict().items()}


def save_adapter(path: Path, tensors: dict[str, Tensor], header: Header) -> None:
    """Write the checkpoint, whole or not at all."""
    save_tensors(path, tensors, "adapter", asdict(header))


def find_adapter(path: Path) -> Path:
    """The checkpoint file that `path`, a file or a run folder, stands for. Raises UserError."""
    file = path / "adapter.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{file}: no such checkpoint; give --ckpt a run folder that has been saved, or its "
                        "adapter.safetensors")
    return file


def read_adapter(path: Path) -> tuple[dict[str, Tensor], Header]:
    """The tensors and header of a checkpoint file. Raises UserError for a damaged or foreign file."""
    tensors, metadata = read_tensors(path)
    if "adapter" not in metadata:
        raise UserError(f"{path}: no checkpoint of this project; give a run folder, or the "
                        "adapter.safetensors in it")
    header = read_header(path, verified(path, tensors, metadata["adapter"]))
    rows = tensors.get("class_embedding.weight")
    if rows is None or rows.shape[:1] != (len(header.classes),):  # else a header alone could fill the memory
        raise UserError(f"{path}: its table is not one of {len(header.classes)} classes; copy it again")
    return tensors, header


def load_adapter(path: Path, header: Header, tensors: dict[str, Tensor], unet: nn.Module,
                 context: nn.Module) -> None:
    """Inject the checkpoint's LoRA into `unet` and fill its `context`. Raises UserError."""
    lora.inject(unet, header.rank, header.alpha, dropout=0.0)
    copy_trained(path, tensors, unet, context)
    context.requires_grad_(False)


def copy_trained(path: Path, tensors: dict[str, Tensor], unet: nn.Module, context: nn.Module) -> None:
    """Copy a checkpoint's tensors into modules, strictly. Raises UserError naming `path`."""
    try:
        parts = {prefix: {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
                 for prefix in ("unet.", "class_")}
        if wide := {key for key in parts["unet."] if f"unet.{key}" == WIDE}:
            unet.conv_in.weight.data.copy_(parts["unet."].pop(*wide))
        lora.load_lora_state(unet, parts["unet."])
        context.load_state_dict(parts["class_"])
    except (UserError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this model: {error}") from error
