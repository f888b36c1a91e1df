"""Memory, arithmetic and traffic of a training step, counted from shapes before any training.

The bytes of all live tensors are counted, but not what a card needs on top: its context, the workspaces of
convolutions, the allocator's gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

import lora
from checkpoints.controlnet import new_control
from checkpoints.metadata import ControlHeader
from runtime.device import DTYPES
from sd.controlnet import ControlNet
from sd.exact_shortcuts import packed_bytes, set_checkpointing, set_fast
from sd.unet import UNet, UNetConfig
from sd.vae import VAE, VAEConfig
from training.config import RunConfig, TrainConfig
from training.kernel_counts import Operation, autocast, counted, flops
from training.setup import make_optimizer


class Footprint(NamedTuple):
    """Bytes, and FLOPs (two a multiplication with addition), of a step with its whole batch."""

    weights: int  # of the UNet with its adapters, or with a ControlNet
    packed: int  # of the packed copy of the weights that a CPU without checkpointing keeps
    kept: int  # activations kept for the backward pass
    peak: int  # the most that is alive at once, weights and optimizer state included
    step: float  # FLOPs
    forward: float  # FLOPs of its forward pass
    encode: float  # FLOPs to encode one image
    operations: tuple[Operation, ...] = ()  # of the step, from the noised latents to the new weights
    drawing: tuple[Operation, ...] = ()  # of the forward pass alone
    encoding: tuple[Operation, ...] = ()  # of encoding one image
    update: tuple[Operation, ...] = ()  # of the step, once for all the batches that it accumulates


class Step(NamedTuple):
    """What a training step depends on beside its flags."""

    unet: UNetConfig
    vae: VAEConfig
    tokens: int = 1  # a class
    control_rank: int | None = None  # of the trained ControlNet, 0: trained whole; None: LoRA is trained


def _networks(config: RunConfig, step: Step) -> tuple[UNet, ControlNet | None, list[torch.nn.Parameter]]:
    """The UNet, frozen in --precision, its ControlNet if there is one, and the trained parameters."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[config.precision])
    unet = UNet(step.unet).train().requires_grad_(False)
    torch.set_default_dtype(default)
    if step.control_rank is None:
        assert isinstance(config, TrainConfig)
        return unet, None, lora.inject(unet, config.rank, config.alpha, config.dropout)
    about = ControlHeader("", None, "", step.control_rank, 3, False, 0.0)
    control = new_control(about, unet, config.seed).train()
    return unet, control, [weight for weight in control.parameters() if weight.requires_grad]


def footprint(config: RunConfig, step: Step, *, checkpointing: str) -> Footprint:
    """Count a training step of `config`, whose precision is not "auto". checkpointing: none, lean, full."""
    side, batch, dtype = config.resolution // 8, config.batch_size, DTYPES[config.precision]
    half = None if dtype == torch.float32 else dtype
    mixed = None if config.fast else half
    with counted() as count:
        unet, control, weights = _networks(config, step)
        for net in (unet, control) if control else (unet,):
            set_fast(net, config.fast)
            set_checkpointing(net, checkpointing)
        lora.seed_dropout(unet, range(batch))
        tokens = torch.nn.Parameter(torch.randn(batch, step.tokens, step.unet.cross_attention_dim),
                                    requires_grad=not control)
        if not control:
            weights.append(tokens)
        optimizer = make_optimizer(config, (weights, config.lr))
        z_t, t = torch.randn(batch, step.unet.in_channels, side, side), torch.zeros(batch, dtype=torch.long)
        condition = torch.randn(batch, 3, config.resolution, config.resolution)
        resident = count.alive
        count.take()
        lora.divide(control or unet)
        with autocast(mixed):
            with autocast(half if control and not mixed else None):
                residuals = control(z_t, t, tokens, condition) if control else None
            loss = unet(z_t, t, tokens, residuals).float().square().mean()
            kept, forward = count.alive - resident, count.take()
            loss.backward()
        backward, most, without_state = count.take(), count.most, count.alive
        optimizer.step()
        peak = max(count.most, most + count.alive - without_state)  # from then on the state stays
        count.take()
        torch.nn.utils.clip_grad_norm_(weights, torch.inf)
        optimizer.step()
        update = count.take()
        vae = VAE(step.vae)
        count.take()
        with torch.no_grad(), autocast(half):
            vae.posterior(torch.randn(1, 3, config.resolution, config.resolution))
        encoding = count.take()
    return Footprint(resident, packed_bytes(unet), kept, peak, flops(forward + backward), flops(forward),
                     flops(encoding), forward + backward + update, forward, encoding, update)
