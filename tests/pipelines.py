"""diffusers' own pipeline on the small base of tests/bases.py, to draw what sample.py draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from published import UNET_JSON, VAE_JSON
from safetensors.torch import load_file
from torch import Tensor

from checkpoints.loading import LoadedCheckpoint, load_checkpoint, read_checkpoint
from checkpoints.prompts import contexts_for
from runtime import seeds
from sampling.generation import SamplingConfig, sample_images
from sd.pretrained import weights

DRAWING = SamplingConfig(steps=6, guidance=2.0)
SIZE = 64
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
             "clip_sample": False, "timestep_spacing": "leading", "set_alpha_to_one": False}


def pipeline(base: Path, tokenizer: Any = None, text_encoder: Any = None) -> StableDiffusionPipeline:
    """diffusers' pipeline with the base's weights and SD 1.5's schedule."""
    parts = []
    for name, model, defaults in (("unet", UNet2DConditionModel, UNET_JSON),
                                  ("vae", AutoencoderKL, VAE_JSON)):
        file = base / name / "diffusion_pytorch_model.safetensors"
        own = weights.load_unet if name == "unet" else weights.load_vae
        config = vars(own(str(base), device="cpu", dtype=torch.float32).config)
        parts.append(model.from_config({**defaults, **config}).eval())
        parts[-1].load_state_dict(load_file(file))
    unet, vae = parts
    pipe = StableDiffusionPipeline(vae, text_encoder, tokenizer, unet, DDIMScheduler(**SCHEDULER), None, None,
                                   requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def our_noise(damage: str, number: int) -> Tensor:
    """(1, 4, h, w): the noise that sample.py starts this image from."""
    rng = seeds.torch_rng(DRAWING.seed, "z_T", damage, number)
    return torch.randn(4, SIZE // 8, SIZE // 8, generator=rng)[None]


def their_picture(pipe: StableDiffusionPipeline, damage: str, **what: Any) -> Tensor:
    """(3, R, R) in [-1, 1], drawn by diffusers from our noise; `what`: prompts or their embeddings."""
    image = pipe(**what, num_inference_steps=DRAWING.steps, guidance_scale=DRAWING.guidance, output_type="pt",
                 latents=our_noise(damage, 0), height=SIZE, width=SIZE).images[0]
    return image * 2 - 1


def our_checkpoint(ckpt: Path, **options: Any) -> LoadedCheckpoint:
    settings = {"device": torch.device("cpu"), "dtype": torch.float32}
    return load_checkpoint(read_checkpoint(ckpt), **{**settings, **options})


def our_images(loaded: LoadedCheckpoint, wanted: list[tuple[str, int]],
               sampling: SamplingConfig = DRAWING) -> Tensor:
    """(B, 3, R, R) in [-1, 1]: what sample.py draws for (class name, number) pairs."""
    class_ids = [loaded.header.classes.index(name) for name, _ in wanted]
    return sample_images(loaded.unet, loaded.vae, contexts_for(loaded.context, class_ids), wanted, sampling,
                         loaded.header.resolution)


def picture_of_card(card: Path, pipe: DiffusionPipeline, damage: str,
                    monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """(3, R, R) in [-1, 1]: what the script of a model card draws, as it stands, from our noise.

    The card names a base that can be had; `pipe` stands in for it.
    """
    script = re.search("```python\n(.*?)```", card.read_text(), re.S)[1]
    call = type(pipe).__call__
    fixed = {"latents": our_noise(damage, 0), "num_inference_steps": DRAWING.steps, "output_type": "pt"}
    monkeypatch.setattr(type(pipe), "from_pretrained", lambda *where, **how: pipe)
    monkeypatch.setattr(type(pipe), "__call__", lambda self, *what, **how: call(self, *what, **how, **fixed))
    found: dict[str, Any] = {}
    exec(script, found)
    return found["image"] * 2 - 1
