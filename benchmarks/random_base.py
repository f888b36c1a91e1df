"""A base with random weights in diffusers layout: enough to measure time and memory."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from runtime.files import save_json
from runtime.tensor_files import save_tensors
from sd.pretrained.components import AUTOENCODER, UNET, WEIGHTS
from sd.pretrained.inpainting import FOLDER as INPAINTING
from sd.unet import UNetConfig
from sd.vae import VAEConfig

SMALLEST = (UNetConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, cross_attention_dim=16,
                       attention_head_dim=2, norm_num_groups=8),
            VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8))


def write_random_base(folder: Path, unet: UNetConfig | None = None, vae: VAEConfig | None = None) -> Path:
    """Write UNet, inpainting UNet and VAE in fp16, by default of SD 1.5's size; return `folder`."""
    for part, config in ((UNET, unet or UNetConfig()), (AUTOENCODER, vae or VAEConfig())):
        with torch.device("meta"):
            module = part.module(config)
        state = {}
        for name, weight in module.state_dict().items():  # as wide as PyTorch's initialisation
            empty = torch.empty(weight.shape, dtype=torch.float16)
            norm = weight.ndim == 1 and "norm" in name and name.endswith("weight")
            state[name] = (empty.fill_(1) if norm else empty.zero_() if weight.ndim == 1 else
                           empty.uniform_(-1, 1).mul_(weight[0].numel() ** -0.5))
        save_tensors(folder / part.folder / f"{WEIGHTS}.safetensors", state, "about", {})
        blocks = part.blocks(len(config.block_out_channels))
        save_json(folder / part.folder / "config.json", dataclasses.asdict(config) | blocks)
    return write_inpainting(folder, folder / "unet")


def write_inpainting(base: Path, unet: Path) -> Path:
    """Add a nine-channel UNet to `base`: that in the folder `unet` with five channels of zero weights."""
    out = base / INPAINTING
    file, = unet.glob("*.safetensors")
    tensors = load_file(file)
    narrow = tensors["conv_in.weight"]
    tensors["conv_in.weight"] = torch.cat([narrow, narrow.new_zeros(len(narrow), 5, 3, 3)], dim=1)
    save_tensors(out / file.name, tensors, "about", {})
    save_json(out / "config.json", json.loads((unet / "config.json").read_text()) | {"in_channels": 9})
    return base


def writable(base: Path, folder: Path) -> Path:
    """A copy of a base on disk made of links, with a nine-channel UNet added if it has none."""
    folder.mkdir()
    for part in base.iterdir():
        (folder / part.name).symlink_to(part.resolve())
    return folder if (folder / INPAINTING).exists() else write_inpainting(folder, base / "unet")
