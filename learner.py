"""What strategies A and B1 train, LoRA and damage-type embedding on a frozen UNet, set up alike."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

import foreign
import lora
from adapter import trained_tensors
from header import Header
from machine import DTYPES, autocast, choose_checkpointing, choose_device, choose_precision
from prompts import make_context, prompts_for
from recipe import RunConfig, TrainConfig, out_folder
from sd.controlnet import ControlNet
from sd.convolution import pack, packed_bytes
from sd.layers import set_checkpointing, set_fast
from sd.unet import UNet
from sd.weights import fingerprint
from training import make_optimizer


def settle(config: RunConfig, strategy: str) -> tuple[torch.device, Path]:
    """Device and run folder; what "auto" and "" stood for goes into the config, and so into every record."""
    device = choose_device(config.device)
    config.precision = choose_precision(config.precision, device)
    folder = out_folder(config, strategy)
    config.out = str(folder)
    return device, folder


def plain_autocast(config: RunConfig, device: torch.device) -> torch.autocast:
    """With --no-fast mixed precision is torch's. Else there is nothing to cast: the frozen base is in
    --precision itself, and what is trained beside it, in fp32, computes in the precision of what it gets.
    """
    return autocast(device, torch.float32 if config.fast else DTYPES[config.precision])


def settle_checkpointing(config: RunConfig, unet: UNet, weights: list[nn.Parameter],
                         control: ControlNet | None = None) -> None:
    """Choose what is computed again in the backward pass. With nothing, on a CPU, weights lie ready twice.

    weights: all that are trained, of `unet` or of the `control` that steers it.
    """
    step = "control" if control else "fast" if config.fast else "plain"
    level = choose_checkpointing(
        config.checkpointing, step, unet.conv_in.weight.device, config.precision, config.batch_size,
        config.resolution, unet.config.block_out_channels[0], sum(weight.numel() for weight in weights),
        packed_bytes(unet) if config.fast else 0)
    for net in (unet, control) if control else (unet,):
        set_checkpointing(net, level)
    if config.fast and level == "none":
        pack(unet, gradients=True)


class Learner:
    """A UNet with fresh adapters and an embedding, their optimizer, and what the checkpoint says of them.

    widened: the UNet's first layer learns too, for no LoRA reaches the weights that were added to it.
    """

    def __init__(self, config: TrainConfig, kind: str, classes: list[str], unet: UNet, *,
                 widened: bool = False) -> None:
        device = unet.conv_in.weight.device
        self.header = Header(
            kind=kind, classes=classes, base=config.base, fingerprint=fingerprint(unet),
            resolution=config.resolution, tokens_per_class=config.tokens_per_class,
            class_dropout=config.class_dropout, rank=config.rank, alpha=config.alpha, step=0,
            config=dataclasses.asdict(config), prompts=prompts_for(config, classes))
        weights = lora.inject(unet, config.rank, config.alpha, config.dropout, seed=config.seed)
        if config.init_lora:
            foreign.start_from(unet, Path(config.init_lora))
        set_fast(unet, config.fast)
        if widened:
            unet.conv_in.weight = nn.Parameter(unet.conv_in.weight.float())
            weights.append(unet.conv_in.weight)
        self.context = make_context(self.header, config.base, unet.config.cross_attention_dim, device,
                                    config.init_std, config.seed)
        self.unet = unet.train()
        settle_checkpointing(config, unet, weights)
        self.optimizer = make_optimizer(config, (weights, config.lr),
                                        (list(self.context.parameters()), config.embedding_rate))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is trained, live, by its name in the checkpoint."""
        return trained_tensors(self.unet, self.context)
