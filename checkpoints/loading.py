"""A checkpoint read from its file and loaded on its base, ready to sample from."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lora
from checkpoints.adapter import WIDE, find_adapter, load_adapter, read_adapter
from checkpoints.controlnet import LoadedControlNet, load_control
from checkpoints.metadata import Header
from checkpoints.prompts import DamageContext, make_context
from runtime.errors import UserError
from runtime.trusted_paths import followed, is_trusted
from sd.compilation import compile_blocks
from sd.exact_shortcuts import pack, set_fast
from sd.pretrained.inpainting import load_inpainting_unet
from sd.pretrained.weights import fingerprint, load_unet, load_vae
from sd.unet import UNet
from sd.vae import VAE


class CheckpointFile(NamedTuple):
    """What a checkpoint file holds."""

    path: Path
    tensors: dict[str, Tensor]
    header: Header


def read_checkpoint(ckpt: str | Path, flag: str = "--ckpt") -> CheckpointFile:
    """Read a checkpoint file, or that of a run folder, given by `flag`.

    Raises UserError for a missing, damaged or foreign one.
    """
    path = find_adapter(Path(ckpt), flag)
    return CheckpointFile(path, *read_adapter(path))


def weights_taken(ckpt: str | Path, file: CheckpointFile) -> str:
    """One line: which weights of a run are taken and why, and where those of its best preview are."""
    line, best = f"{file.path}: the weights of step {file.header.step}", Path(ckpt) / "best.safetensors"
    if best.is_file():
        line += f", the last: previews are too few images to choose by (the best one's: --ckpt {best})"
    return line


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint on its base, ready to sample from."""

    unet: UNet
    vae: VAE
    context: DamageContext
    header: Header
    controlnet: LoadedControlNet | None  # its own, or the one given

    def speed_up(self, *, compiled: bool) -> None:
        """Make sampling faster: compile the blocks of UNet and ControlNet, or pack their weights for a CPU.

        Packed networks have no gradients. The VAE stays as it is: it runs once an image.
        """
        for net in (self.unet, self.controlnet.net) if self.controlnet else (self.unet,):
            if compiled:
                compile_blocks(net)
            else:
                pack(net, gradients=False)


def load_checkpoint(file: CheckpointFile, *, base: str | None = None, strength: float = 1.0,
                    device: torch.device, dtype: torch.dtype, loras: Sequence[tuple[Path, float]] = (),
                    control: CheckpointFile | None = None, fast: bool = True) -> LoadedCheckpoint:
    """Load a checkpoint and the base that its header names (or `base`), merge its LoRA at `strength`.

    loras: external LoRA files to add, each with its strength. control: a checkpoint whose ControlNet is used
    instead of its own. fast: False leaves the LoRA unmerged and all exact shortcuts out, to compare with.
    Raises UserError for a damaged file or a base with other weights than the checkpoint was trained on.
    """
    # External LoRAs may reach any layer, and a ControlNet begins with a copy of the UNet's encoder.
    exact = torch.float32 if loras or file.header.control else dtype
    base_here, unet = _load_base(file, base, exact)
    context = make_context(file.header, base_here, unet.config.cross_attention_dim, device, loras=loras)
    load_adapter(file.path, file.header, file.tensors, unet, context)
    controlnet = None
    if file.header.control:
        controlnet = _with_controlnet(file, unet, context, device, dtype)
    elif control:
        controlnet = load_controlnet(control, base, device=device, dtype=dtype, like=unet)
    lora.set_strength(unet, strength)
    if fast:
        lora.merge(unet)
    _add(loras, unet)
    vae = load_vae(base_here, device=device, dtype=torch.float32)
    unet.to(device, dtype)
    for net in (unet, controlnet.net) if controlnet else (unet,):
        set_fast(net, fast)
    return LoadedCheckpoint(unet, vae, context, file.header, controlnet)


def load_controlnet(file: CheckpointFile, base: str | None = None, *, device: torch.device,
                    dtype: torch.dtype, like: UNet | None = None) -> LoadedControlNet:
    """The ControlNet of a checkpoint alone, without VAE; errors as for load_checkpoint.

    base: is tried first, then the base that the checkpoint names. like: a UNet of the same architecture. With
    it a base is read only where the ControlNet's frozen encoder is a copy of that base's.
    """
    about, unet, header = file.header.control, like, file.header
    assert about is not None
    base_here = base or (base_of(file.path, header) if header.prompts or like is None else header.base)
    adapted = like is None or about.rank > 0 and about.init is None
    if adapted:
        try:
            base_here, unet = _load_base(file, base, torch.float32)
        except UserError:
            if base is None or not is_trusted(header.base):
                raise
            base_here, unet = _load_base(file, None, torch.float32)
    assert unet is not None
    context = make_context(header, base_here, unet.config.cross_attention_dim, device)
    load_adapter(file.path, header, file.tensors, unet if adapted else None, context)
    return _with_controlnet(file, unet, context, device, dtype)


def base_of(path: Path, header: Header) -> str:
    """The base that a checkpoint names. Raises UserError where that is an untrusted path."""
    return followed(header.base, path, f"if you trust it, add --base {shlex.quote(header.base)}")


def _load_base(file: CheckpointFile, given: str | None, dtype: torch.dtype) -> tuple[str, UNet]:
    """The base of a checkpoint and its UNet on the CPU, in `dtype` except the layers of the LoRA.

    Those are in fp32: the LoRA is added there and the sum is cast once. In half precision small updates would
    be rounded away.
    """
    base, header = given or base_of(file.path, file.header), file.header
    how: dict[str, Any] = {"device": "cpu", "dtype": dtype, "precise": lora.TARGETS}
    try:
        if header.strategy.inpaints:
            unet, _ = load_inpainting_unet(base, widened=WIDE in file.tensors, **how)
        else:
            unet = load_unet(base, **how)
    except UserError as error:
        if given is not None:
            raise
        raise UserError(f"{file.path}: the base it was trained on cannot be loaded ({error}); say "
                        "with --base where that model lies now") from error
    if fingerprint(unet) != header.fingerprint:
        raise UserError(f"{file.path}: was trained on other weights than --base {base} has; give the base it "
                        f"was trained on ({header.base})")
    return base, unet


def _with_controlnet(file: CheckpointFile, unet: UNet, context: DamageContext, device: torch.device,
                     dtype: torch.dtype) -> LoadedControlNet:
    """The ControlNet of a checkpoint; `unet` with the checkpoint's LoRA, which is merged for it."""
    assert file.header.control is not None
    with lora.merged(unet):
        net = load_control(file.path, file.header.control, file.tensors, unet).to(device, dtype)
    return LoadedControlNet(net, context, file.header)


def _add(loras: Sequence[tuple[Path, float]], unet: UNet) -> None:
    """Add external LoRA files to the weights of `unet`."""
    if loras:
        from checkpoints import external_lora  # with all LoRA formats, which are rarely needed
        for file, strength in loras:
            external_lora.add(unet, "unet", file, strength)
