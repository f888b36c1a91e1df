"""diffusers + peft's training and sampling step for benchmarks.roofline, as benchmarks/peer.py runs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import nn

from benchmarks.peer import LORA
from training.kernel_counts import Operation, autocast, counted

BEST, STOCK = "diffusers + peft", "diffusers + peft, stock example"
SHAPES = {"cross_attention_dim": 768, "attention_head_dim": 8, "block_out_channels": (320, 640, 1280, 1280)}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32,
       "latent_channels": 4, "down_block_types": ("DownEncoderBlock2D",) * 4,
       "up_block_types": ("UpDecoderBlock2D",) * 4}
Module = TypeVar("Module", bound=nn.Module)


def in_dtype(make: Callable[[], Module], dtype: torch.dtype = torch.float16) -> Module:
    """A frozen network whose weights are made in `dtype`."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make().requires_grad_(False)
    finally:
        torch.set_default_dtype(default)


def channels_last(module: nn.Module) -> None:
    """Store the convolutions' weights so."""
    for weight in module.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def training(strategy: str, tokens: int, batch: int, *, stock: bool = False) -> tuple[tuple[Operation, ...],
                                                                                     int]:
    """The operations of a step, and the bytes of activations kept for its backward pass.

    stock: the default layout, AdamW that is not fused, and the VAE in the loop, before the step.
    """
    with counted() as count:
        unet = in_dtype(lambda: UNet2DConditionModel(
            in_channels=9 if strategy == "B1" else 4, **SHAPES)).train()
        control = in_dtype(lambda: ControlNetModel.from_unet(unet)).train() if strategy == "B2" else None
        if control is None:
            unet.add_adapter(LORA)
        for module in () if stock else (unet, control):
            if module is not None:
                channels_last(module)
        trained = list(control.requires_grad_(True).parameters()) if control is not None else [
            weight for weight in unet.parameters() if weight.requires_grad]
        for weight in trained:
            weight.data = weight.data.float()
        context = nn.Parameter(torch.randn(batch, tokens, 768), requires_grad=control is None)
        weights = trained + [context] * (control is None)
        optimizer = torch.optim.AdamW(weights, fused=None if stock else True)
        for weight in weights:  # its state
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        vae: Any = in_dtype(lambda: AutoencoderKL(**VAE)) if stock else None
        z_t, t = torch.randn(batch, unet.config.in_channels, 64, 64), torch.zeros(batch, dtype=torch.long)
        image = torch.randn(batch, 3, 512, 512, dtype=torch.float16 if vae else torch.float32)
        count.take()
        for _ in range(1 + (strategy == "B1") if vae else 0):
            with torch.no_grad():
                vae.encode(image).latent_dist.sample()
        resident, residuals = count.alive, {}
        with autocast(torch.float16):
            if control is not None:
                skips, mid = control(z_t, t, context, image, return_dict=False)
                residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": mid}
            eps_hat = unet(z_t, t, context, **residuals).sample
            loss = F.mse_loss(eps_hat.float(), torch.empty(eps_hat.shape))
            kept = count.alive - resident
            loss.backward()
        optimizer.step()
        return count.take(), kept


def sampling(tokens: int, batch: int) -> tuple[tuple[Operation, ...], int]:
    """A guided step as in StableDiffusionPipeline, with the LoRA fused; nothing is kept."""
    with counted() as count, torch.no_grad():
        unet = in_dtype(lambda: UNet2DConditionModel(**SHAPES))
        channels_last(unet)
        z_t, t = torch.randn(batch, 4, 64, 64, dtype=torch.float16), torch.zeros(1, dtype=torch.long)
        context = torch.randn(2 * batch, tokens, 768, dtype=torch.float16)
        count.take()
        null, damage = unet(torch.cat([z_t] * 2), t, context, return_dict=False)[0].chunk(2)
        null + 2.0 * (damage - null)
        return count.take(), 0
