"""Write a checkpoint's ControlNet as the folder that diffusers and ComfyUI read, low-rank updates merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoints.controlnet import write_controlnet
from checkpoints.loading import load_controlnet, read_checkpoint
from runtime import errors
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.locks import new_folder

EXAMPLE = """example:
  python -m checkpoints.controlnet_export --ckpt runs/bottle-control --out bottle-controlnet
Then, in Python: ControlNetModel.from_pretrained("bottle-controlnet"). Its image is the mask, in three equal
channels of 0 to 1. It was trained with the damage types' tokens as prompt embeddings, on the UNet with the
class checkpoint's LoRA: python lora.py convert runs/bottle-class bottle-lora --to diffusers writes both.
"""


@dataclass
class Config:
    """The command line of checkpoints.controlnet_export."""

    ckpt: str = flag(..., "run folder of train_controlnet.py, or its adapter.safetensors")
    out: str = flag(..., "folder to write: config.json and diffusion_pytorch_model.safetensors")
    base: str | None = flag(None, "where the base is now (default: the recorded base, if it is a hub id or "
                            "a path that you chose before)")


def main() -> None:
    """The command: load the checkpoint, write its ControlNet."""
    config = parse(Config, __doc__, EXAMPLE, program="-m checkpoints.controlnet_export")
    with new_folder(Path(config.out)) as private:
        file = read_checkpoint(config.ckpt)
        if not file.header.strategy.controls:
            raise UserError(f"{file.path}: holds no ControlNet; give a checkpoint of train_controlnet.py")
        controlnet = load_controlnet(file, config.base, device=torch.device("cpu"), dtype=torch.float32)
        files = write_controlnet(private, controlnet.net)
    print(*(Path(config.out, written.name) for written in files), sep="\n")


if __name__ == "__main__":
    errors.run(main)
