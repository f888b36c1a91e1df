"""Write a checkpoint's ControlNet as the folder that diffusers and ComfyUI read, low-rank updates merged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import errors
from config import flag, parse
from control import write_controlnet
from errors import UserError
from generation import load_generator

EXAMPLE = """example:
  python export_controlnet.py --ckpt runs/bottle-control --out bottle-controlnet
Then, in Python: ControlNetModel.from_pretrained("bottle-controlnet"). Its image is the mask, in three equal
channels of 0 to 1. It was trained with the damage types' tokens as prompt embeddings, on the UNet with the
class checkpoint's LoRA: python lora.py convert runs/bottle-class bottle-lora --to diffusers writes both.
"""


@dataclass
class Config:
    """The command line of export_controlnet.py."""

    ckpt: str = flag(..., "run folder of train_controlnet.py, or its adapter.safetensors")
    out: str = flag(..., "folder to write: config.json and diffusion_pytorch_model.safetensors")
    base: str | None = flag(None, "where the base lies now (default: what the checkpoint was trained on, "
                            "unless that is a path out of this folder)")


def main() -> None:
    """The command: load the checkpoint, write its ControlNet."""
    config = parse(Config, __doc__, EXAMPLE)
    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not an empty folder; give another")
    generator = load_generator(Path(config.ckpt), base=config.base, strength=1.0, device=torch.device("cpu"),
                               dtype=torch.float32)
    if generator.steered is None:
        raise UserError(f"{generator.path}: holds no ControlNet; give a checkpoint of train_controlnet.py")
    for file in write_controlnet(out, generator.steered.net):
        print(file)


if __name__ == "__main__":
    errors.run(main)
