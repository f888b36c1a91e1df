"""Before the loop: what "auto" stands for, the data's summary, what is trained and by which optimizer."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

import torch
from torch import nn

import lora
from checkpoints import external_lora
from checkpoints.adapter import trained_tensors
from checkpoints.metadata import Header
from checkpoints.prompts import DamageContext, make_context, prompts_for
from data import DefectDataset
from runtime import distributed
from runtime.device import choose_checkpointing, choose_device, choose_precision
from runtime.files import refuse_inside
from runtime.trusted_paths import flag_if_untrusted
from sd.compilation import check_compiler, compile_blocks
from sd.controlnet import ControlNet
from sd.exact_shortcuts import pack, packed_bytes, set_checkpointing, set_fast
from sd.pretrained.weights import fingerprint
from sd.unet import UNet
from training.config import RunConfig, TrainConfig, product_name, run_folder
from training.presets import announce_preset, drawing_of
from training.resume_state import Trainable


def resolve_run(config: RunConfig, strategy: str) -> torch.device:
    """Replace "auto" and "" in the config by what they stand for, so that records name it; return the device.

    Raises UserError where the device is not there or cannot --compile, or --out lies in the data.
    """
    device = choose_device(config.device)
    config.precision = choose_precision(config.precision, device)
    if config.compile:
        check_compiler(device, fast=config.fast)
    folder = run_folder(config.out, config.data, strategy)
    refuse_inside(folder, config.data)
    config.out = str(folder)
    announce_preset(config, strategy)
    return device


def announce(dataset: DefectDataset) -> None:
    """Print the number of images of each class, and on stderr what looks wrong with the data."""
    print(dataset.summary())
    if distributed.first():
        for line in dataset.warnings():
            print(line, file=sys.stderr)


def announce_end(config: RunConfig, *, images: str = "", masks: bool = False) -> None:
    """Print where the checkpoint is and the command that samples from it."""
    print(f"done: {Path(config.out, 'adapter.safetensors')}; sample with: python sample.py --ckpt "
          f"{shlex.quote(config.out)}{images}{flag_if_untrusted('--base', config.base)}"
          f"{flag_if_untrusted('--masks', config.data[0]) if masks else ''} --out generated")


def make_optimizer(config: RunConfig, *groups: tuple[list[nn.Parameter], float]) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over groups of parameters, each with its learning rate before any decay."""
    named = [{"params": parameters, "initial_lr": rate} for parameters, rate in groups]
    return torch.optim.AdamW(named, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay,
                             fused=True)


def set_up_blocks(config: RunConfig, header: Header, unet: UNet, weights: list[nn.Parameter],
                  control: ControlNet | None = None) -> None:
    """Choose and set which activations are recomputed in the backward pass; with --compile, compile blocks.

    header: of the checkpoint to be. weights: all that are trained, of `unet` or of its `control`. Without
    either, a CPU keeps a second, packed copy of the frozen weights.
    """
    step = "control" if control else "fast" if config.fast else "plain"
    packs = config.fast and not config.compile
    level = choose_checkpointing(
        config.checkpointing, step, unet.conv_in.weight.device, config.precision, config.batch_size,
        config.resolution, unet.config.block_out_channels[0], sum(weight.numel() for weight in weights),
        packed_bytes(unet) if packs else 0, one_token=header.one_token)
    for net in (unet, control) if control else (unet,):
        set_checkpointing(net, level)
        if config.compile:
            compile_blocks(net)
    if packs and level == "none":
        pack(unet, gradients=True)


def add_adapters(config: TrainConfig, kind: str, dataset: DefectDataset, unet: UNet, *,
                 widened: bool = False) -> tuple[DamageContext, Trainable]:
    """Inject LoRA into `unet` and make the class context; both are trained. The UNet itself stays frozen.

    widened: train the UNet's first convolution too, because no LoRA reaches its five new input channels.
    Raises UserError where --init-lora or --prompt does not fit.
    """
    classes, prompts = dataset.classes, list[str]()
    if config.context == "prompt":
        prompts = prompts_for(config.prompt, classes, product_name(config))
    header = Header(
        kind=kind, classes=classes, base=config.base, fingerprint=fingerprint(unet),
        resolution=config.resolution, tokens_per_class=config.tokens_per_class,
        class_dropout=config.class_dropout, rank=config.rank, alpha=config.alpha, step=0,
        config=dataclasses.asdict(config), prompts=prompts, shape=dataset.shape,
        drawing=drawing_of(config, kind, null=config.class_dropout > 0 or bool(prompts)))
    weights = lora.inject(unet, config.rank, config.alpha, config.dropout, seed=config.seed)
    if config.init_lora:
        external_lora.start_from(unet, Path(config.init_lora))
    set_fast(unet, config.fast)
    if widened:
        unet.conv_in.weight = nn.Parameter(unet.conv_in.weight.float())
        weights.append(unet.conv_in.weight)
    context = make_context(header, config.base, unet.config.cross_attention_dim, unet.conv_in.weight.device,
                           config.init_std, config.seed)
    unet.train()
    set_up_blocks(config, header, unet, weights)
    optimizer = make_optimizer(config, (weights, config.lr),
                               (list(context.parameters()), config.embedding_rate))
    return context, Trainable(unet, trained_tensors(unet, context), optimizer, header)
