"""The ControlNet of a run: made from the class checkpoint's UNet or a published one, saved, and loaded again.

It is trained whole (rank 0), or its encoder stays frozen and learns low-rank updates of its linear layers,
while the condition encoder and the convolutions of the outputs, which no UNet has, learn in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import lora
from checkpoints.metadata import ControlHeader, Header
from checkpoints.prompts import DamageContext, contexts_for
from runtime.errors import UserError
from runtime.files import save_json
from runtime.seeds import torch_rng
from runtime.tensor_files import save_safetensors
from runtime.trusted_paths import followed
from sd.controlnet import ControlNet, copy_encoder
from sd.guidance import ControlCondition
from sd.pretrained.components import WEIGHTS, controlnet_json
from sd.pretrained.weights import fingerprint, load_controlnet
from sd.unet import UNet

LOW_RANK_TARGETS = (*lora.TARGETS, "net.0.proj", "net.2", "time_emb_proj", "linear_1", "linear_2")


class ControlSettings(NamedTuple):
    """The weight of a ControlNet at sampling, as samples.jsonl records it."""

    control_scale: float = 1.0  # 0: not at all
    mask_guidance: float = 1.0
    control: str | None = None  # SHA-256 of its checkpoint, where that is not the one that draws


class LoadedControlNet(NamedTuple):
    """A checkpoint's ControlNet with the damage types it was trained on."""

    net: ControlNet
    context: DamageContext
    header: Header

    def control(self, masks: list[np.ndarray], damages: list[str],
                settings: ControlSettings) -> ControlCondition:
        """The condition of a batch: a mask (R,R) in {0,1} and a damage type for each image."""
        about, class_ids = self.header.control, [self.header.classes.index(name) for name in damages]
        assert about is not None
        mask = torch.from_numpy(np.stack(masks))[:, None]
        if about.class_channels:
            mask = mask * torch.eye(about.channels, dtype=mask.dtype)[class_ids][:, :, None, None]
        contexts = contexts_for(self.context, class_ids)
        condition = to_condition(mask.to(contexts.damage.device), about.channels)
        return ControlCondition(self.net, contexts, condition, settings.control_scale, settings.mask_guidance)


def to_condition(mask: Tensor, channels: int) -> Tensor:
    """A batch's masks (B, 1 or classes, R, R) in {0,1} -> the condition (B, channels, R, R)."""
    return mask.float().expand(-1, channels, -1, -1)


def new_control(header: ControlHeader, unet: UNet, seed: int, *, share: bool = True) -> ControlNet:
    """The ControlNet that a training begins with, on the UNet's device; what is trained requires gradients.

    unet: with the class LoRA merged. share: frozen layers that equal the UNet's use its tensors, not copies.
    Trained weights are fp32, frozen ones of the UNet's dtype. Raises UserError where `header.init` cannot be
    used.
    """
    device, dtype = unet.conv_in.weight.device, unet.conv_in.weight.dtype
    if header.init is None:
        rng = torch_rng(seed, "ControlNet")
        control = copy_encoder(unet, header.channels, rng, share=share and header.rank > 0)
    else:
        control = load_controlnet(header.init, unet.config, condition_channels=header.channels, device=device,
                                  dtype=torch.float32)
    if header.rank == 0:
        return control.requires_grad_(True)
    if control.dtype != dtype:
        for frozen in (control.conv_in, control.time_embedding, control.down_blocks, control.mid_block):
            frozen.to(dtype)
    lora.inject(control, header.rank, alpha=2 * header.rank, dropout=0.0, targets=LOW_RANK_TARGETS, seed=seed)
    for trained in (control.controlnet_cond_embedding, control.controlnet_down_blocks,
                    control.controlnet_mid_block):
        trained.requires_grad_(True)
    return control


def trained_control(control: nn.Module) -> dict[str, Tensor]:
    """What training changes, by its name in the checkpoint. The tensors are live, not copies."""
    return {f"control.{name}": weight.detach() for name, weight in control.named_parameters()
            if weight.requires_grad}


def load_control(path: Path, header: ControlHeader, tensors: dict[str, Tensor], unet: UNet) -> ControlNet:
    """The ControlNet of a checkpoint, frozen and without adapters; `unet` as for new_control.

    Raises UserError naming `path` where its tensors do not fit, or `header.init` has become another one.
    """
    if header.rank:
        if header.init is not None:
            followed(header.init, path, "run this in a folder above it")
        control = new_control(header, unet, seed=0, share=False)  # the UNet may be changed afterwards
        if fingerprint(control) != header.fingerprint:
            raise UserError(f"{path}: was trained on another ControlNet than {header.init} is now")
        wanted = trained_control(control)
    else:  # all of it is in the file: the UNet's tensors only hold the places
        control = copy_encoder(unet, header.channels, torch.Generator(), share=True)
        wanted = {f"control.{name}": tensor for name, tensor in control.state_dict().items()}
    found = {name: tensor for name, tensor in tensors.items() if name.startswith("control.")}
    wrong = sorted(name for name in wanted.keys() | found.keys() if name not in wanted or name not in found
                   or wanted[name].shape != found[name].shape)
    if wrong:
        raise UserError(f"{path}: does not fit this model: {wrong[0]}" + (f" and {len(wrong) - 1} more" if
                        wrong[1:] else "") + " missing, too many or of another shape")
    state = {name.removeprefix("control."): tensor for name, tensor in found.items()}
    control.load_state_dict(state, strict=False, assign=True)
    lora.merge(control)
    return control.eval().requires_grad_(False)


def write_controlnet(folder: Path, control: ControlNet) -> list[Path]:
    """Write a ControlNet without adapters in diffusers' layout. Returns the files."""
    weights, config = folder / f"{WEIGHTS}.safetensors", folder / "config.json"
    save_safetensors(weights, control.state_dict(), {"format": "pt"})
    save_json(config, controlnet_json(control.config))
    return [config, weights]
