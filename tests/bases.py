"""A small base model with random weights in diffusers' layout, a small dataset, and scripts run on them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from safetensors.torch import save_file

from runtime import errors
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig

ROOT = Path(__file__).parent.parent
CPU = {"device": "cpu", "dtype": torch.float32}
UNET = UNetConfig(block_out_channels=(16, 16, 32, 32), layers_per_block=1, cross_attention_dim=16,
                  attention_head_dim=2, norm_num_groups=8)
AUTOENCODER = VAEConfig(block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=8)


def write_base(folder: Path, seed: int = 0, *, inpainting: bool = False) -> Path:
    """A whole base of a few hundred kB; another seed is another base. inpainting: with unet_inpaint/ too."""
    parts = [("unet", UNet, UNET), ("vae", VAE, AUTOENCODER)]
    if inpainting:
        parts.append(("unet_inpaint", UNet, dataclasses.replace(UNET, in_channels=9)))
    for name, module, config in parts:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = module(config)
        (folder / name).mkdir(parents=True)
        save_file(model.state_dict(), folder / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return folder


def write_text(base: Path, length: int = 77) -> Path:
    """A text encoder and a tokenizer added to a base: bytes for words, random weights."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTextConfig, CLIPTextModel
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(words) - 2, len(words) - 1
    folder = base / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>",
        "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        clip = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(words), hidden_size=UNET.cross_attention_dim, intermediate_size=32,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=length, bos_token_id=start,
            eos_token_id=end, pad_token_id=end))
        for name, weight in clip.named_parameters():  # transformers' own start is too faint to tell words
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=1.0 if "embedding" in name else weight.shape[1] ** -0.5)
    clip.save_pretrained(base / "text_encoder")
    return base


class Place(NamedTuple):
    """A base, and demo photos: 3 a class."""

    base: Path
    data: Path


class Outcome(NamedTuple):
    """What a command left: exit status, and what it wrote."""

    status: int
    out: str
    err: str

    def failed_with(self, *texts: str) -> bool:
        """Status 2 and a single line, apart from what was said before, that holds each of `texts`."""
        *before, last = self.err.splitlines()
        return (self.status == 2 and last.startswith("error: ") and "Traceback" not in self.err
                and not any(line.startswith("error: ") for line in before)
                and all(text in last for text in texts))


def command(main: Callable[[], None], *arguments: object) -> Outcome:
    """Run a script's main as `python script.py ARGUMENTS` would, in this process."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
          mock.patch.object(sys, "argv", ["script.py", *map(str, arguments)])):
        try:
            errors.run(main)
        except SystemExit as stop:
            status = stop.code
    return Outcome(status, out.getvalue(), err.getvalue())


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]
