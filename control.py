"""The ControlNet of a run: made from the class checkpoint's UNet or a published one, saved, and loaded again.

It is trained whole (rank 0), or its encoder stays frozen and learns low-rank updates of its linear layers,
while the condition encoder and the convolutions of the outputs, which no UNet has, learn in full.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lora
from errors import UserError
from files import save_json, write_atomic
from guidance import Control
from header import ControlHeader, Header
from named import followed
from prompts import DamageContext
from sd.controlnet import ControlNet, copy_encoder
from sd.parts import WEIGHTS, controlnet_json
from sd.unet import UNet
from sd.weights import fingerprint, load_controlnet
from seeds import torch_rng

LOW_RANK_TARGETS = (*lora.TARGETS, "net.0.proj", "net.2", "time_emb_proj", "linear_1", "linear_2")


class Steer(NamedTuple):
    """How a ControlNet counts at sampling; as samples.jsonl notes it."""

    control_scale: float = 1.0  # 0: not at all
    mask_guidance: float = 1.0
    control: str | None = None  # SHA-256 of its checkpoint, where that is not the one that draws


class Steered(NamedTuple):
    """A checkpoint's ControlNet with the damage types it was trained on."""

    net: ControlNet
    context: DamageContext
    header: Header

    def control(self, masks: list[np.ndarray], damages: list[str], steer: Steer) -> Control:
        """What steers a batch of these classes towards its masks, each (R,R) in {0,1}."""
        mask = torch.from_numpy(np.stack(masks))[:, None]
        if self.header.control.class_channels:
            class_id = [self.header.classes.index(name) for name in damages]
            mask = mask * torch.eye(len(self.header.classes), dtype=mask.dtype)[class_id][:, :, None, None]
        condition = to_condition(mask.to(self.context.null.device), self.header.control.channels)
        return Control(self.net, self.context, condition, steer.control_scale, steer.mask_guidance)


def to_condition(mask: Tensor, channels: int) -> Tensor:
    """A batch's masks (B, 1 or classes, R, R) in {0,1} -> the condition (B, channels, R, R)."""
    return mask.float().expand(-1, channels, -1, -1)


def new_control(header: ControlHeader, unet: UNet, seed: int, *, share: bool = True) -> ControlNet:
    """The ControlNet that a training begins with, on the UNet's device; what is trained requires gradients.

    unet: with the class LoRA merged. share: let what stays frozen as the UNet has it lie in the UNet's own
    memory. Trained weights are fp32, frozen ones of the UNet's dtype. Raises UserError where `header.init`
    cannot be used.
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
        for part in (control.conv_in, control.time_embedding, control.down_blocks, control.mid_block):
            part.to(dtype)
    lora.inject(control, header.rank, alpha=2 * header.rank, dropout=0.0, targets=LOW_RANK_TARGETS, seed=seed)
    for part in (control.controlnet_cond_embedding, control.controlnet_down_blocks,
                 control.controlnet_mid_block):
        part.requires_grad_(True)
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
    tensors = {name: tensor.contiguous() for name, tensor in control.state_dict().items()}
    write_atomic(weights, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))
    save_json(config, controlnet_json(control.config))
    return [config, weights]
