"""A base of SD 1.5's size and layout, whose weights are random: what a measurement needs of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from files import save_json, save_tensors
from sd.inpainting import FOLDER as INPAINTING
from sd.parts import AUTOENCODER, UNET, WEIGHTS


def write_random_base(folder: Path) -> Path:
    """A model in diffusers' layout, fp16, as published; only its weights are random."""
    for part in (UNET, AUTOENCODER):
        with torch.device("meta"):
            module = part.module(part.config)
        state = {}
        for name, weight in module.state_dict().items():  # as wide as PyTorch's own start
            empty = torch.empty(weight.shape, dtype=torch.float16)
            norm = weight.ndim == 1 and "norm" in name and name.endswith("weight")
            state[name] = (empty.fill_(1) if norm else empty.zero_() if weight.ndim == 1 else
                           empty.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5))
        save_tensors(folder / part.folder / f"{WEIGHTS}.safetensors", state, "about", {})
        blocks = part.blocks(len(part.config.block_out_channels))
        save_json(folder / part.folder / "config.json", dataclasses.asdict(part.config) | blocks)
    return write_inpainting(folder, folder / "unet")


def write_inpainting(base: Path, unet: Path) -> Path:
    """`base` with a nine-channel UNet: that in the folder `unet`, five more channels zero."""
    out = base / INPAINTING
    file, = unet.glob("*.safetensors")
    tensors = load_file(file)
    narrow = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = torch.cat([narrow, narrow.new_zeros(len(narrow), 5, 3, 3)], dim=1)
    save_tensors(out / file.name, tensors, "about", {})
    save_json(out / "config.json", json.loads((unet / "config.json").read_text()) | {"in_channels": 9})
    return base


def writable(base: Path, folder: Path) -> Path:
    """A base on disk as a folder of links, with a nine-channel UNet added if it has none."""
    folder.mkdir()
    for part in base.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    return folder if (folder / INPAINTING).exists() else write_inpainting(folder, base / "unet")
