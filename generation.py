"""A base and a checkpoint made into images: eps(z_t, t) for the samplers, in previews and sample.py alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import foreign
import lora
from adapter import NULL, ClassContext, Header, find_adapter, load_adapter, read_adapter
from control import load_control
from errors import UserError
from sd.controlnet import ControlNet
from sd.diffusion import Eps, Noise, ddim, ddpm, dpm_solver
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import fingerprint, load_unet, load_vae
from seeds import torch_rng

SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++linspace")


@dataclass(frozen=True)
class Drawing:
    """How to draw: the settings that, with a seed, a class and a number, fix an image."""

    seed: int = 42
    steps: int = 50
    sampler: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0


@dataclass(frozen=True)
class Control:
    """A ControlNet at work: a condition (B, C, R, R) in [0,1] for each image, and how it counts."""

    net: ControlNet
    condition: Tensor
    scale: float = 1.0  # of the residuals: 0 is the UNet alone
    guidance: float = 1.0  # away from what the empty mask gives

    def residuals(self, z_t: Tensor, t: Tensor, tokens: Tensor,
                  condition: Tensor) -> tuple[list[Tensor], Tensor]:
        """The ControlNet's residuals for UNet, scaled."""
        skips, mid = self.net(z_t, t, tokens, condition)
        return [self.scale * skip for skip in skips], self.scale * mid


def guided(unet: UNet, context: ClassContext, class_id: Tensor, guidance: float,
           control: Control | None = None) -> Eps:
    """eps(z_t, t) for the classes (B,) given, with classifier-free guidance (Ho & Salimans 2022, 2207.12598).

    eps + (guidance - 1) (eps - eps_null), where eps_null knows no class; likewise, on top, with the control's
    guidance and an empty mask. What has guidance 1 is not computed.
    """
    ids, scales = [class_id], []
    conditions = [control.condition] if control else []
    if guidance != 1:
        ids.append(torch.full_like(class_id, NULL))
        conditions += conditions[:1]
        scales.append(guidance)
    if control and control.guidance != 1:
        ids.append(class_id)
        conditions.append(torch.zeros_like(control.condition))
        scales.append(control.guidance)
    dtype = unet.conv_in.weight.dtype
    tokens = context(torch.cat(ids)).to(dtype)
    condition = torch.cat(conditions).to(dtype) if control else None

    def eps(z_t: Tensor, t: int) -> Tensor:
        z_t = torch.cat([z_t] * len(ids)).to(dtype)
        times = torch.full((len(z_t),), t, device=z_t.device)
        residuals = control.residuals(z_t, times, tokens, condition) if control else None
        eps_hat, *others = unet(z_t, times, tokens, residuals).float().chunk(len(ids))
        away = [(scale - 1) * (eps_hat - other) for scale, other in zip(scales, others, strict=True)]
        return sum(away, eps_hat)

    return eps


def run_sampler(drawing: Drawing, eps: Eps, z: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The chosen sampler, started from z = z_T."""
    if drawing.sampler == "ddim":
        return ddim(eps, z, steps=drawing.steps, eta=drawing.eta, noise=noise)
    if drawing.sampler == "ddpm":
        return ddpm(eps, z, steps=drawing.steps, noise=noise)
    return dpm_solver(eps, z, steps=drawing.steps, karras=drawing.sampler == "dpm++")


@torch.no_grad()
def draw(unet: UNet, vae: VAE, context: ClassContext, wanted: list[tuple[str, int, int]], drawing: Drawing,
         resolution: int, control: Control | None = None) -> Tensor:
    """Draw images (B, 3, R, R) in [-1, 1], R = resolution: one for each (class name, class id, number).

    The noise of an image depends on (seed, class name, number) alone, so batches can be cut anywhere. Its
    pixels are then the same but for rounding: with another batch size the system's matrix products and
    convolutions add up in another order.
    """
    device, size = next(unet.parameters()).device, resolution // 8

    def noise(*step: int | str) -> Tensor:
        draws = [torch.randn(4, size, size, generator=torch_rng(drawing.seed, *step, name, number))
                 for name, _, number in wanted]
        return torch.stack(draws).to(device)

    class_id = torch.tensor([i for _, i, _ in wanted], device=device)
    eps = guided(unet, context, class_id, drawing.guidance, control)
    *_, z = run_sampler(drawing, eps, noise("z_T"), lambda i: noise("step", i))
    with torch.autocast(device.type, enabled=False):  # in fp32 and one by one: precise, and little memory
        return torch.cat([vae.decode(z_0.float()) for z_0 in z.split(1)]).clamp(-1, 1)


@dataclass(frozen=True)
class Generator:
    """A checkpoint on its base, ready to draw."""

    unet: UNet
    vae: VAE
    context: ClassContext
    header: Header
    path: Path
    control: ControlNet | None  # in checkpoints of kind "control"

    def draw(self, wanted: list[tuple[str, int]], drawing: Drawing) -> Tensor:
        """Images (B, 3, R, R) in [-1, 1] for (class name, number) pairs; R is the training resolution."""
        ids = [(name, self.header.classes.index(name), number) for name, number in wanted]
        return draw(self.unet, self.vae, self.context, ids, drawing, self.header.resolution)


def load_generator(ckpt: Path, *, base: str | None, strength: float, device: torch.device,
                   dtype: torch.dtype, loras: Sequence[tuple[Path, float]] = ()) -> Generator:
    """Load a checkpoint and the base that its header names (or `base`), merge its LoRA at `strength`.

    loras: LoRA files of others to add, each with its strength.
    Raises UserError for a damaged file or a base with other weights than the checkpoint was trained on.
    """
    path = find_adapter(ckpt)
    tensors, header = read_adapter(path)
    try:
        unet = load_unet(base or header.base, device="cpu", dtype=torch.float32)
    except UserError as error:
        if base is not None:
            raise
        raise UserError(f"{path}: the base it was trained on cannot be loaded ({error}); say "
                        "with --base where that model lies now") from error
    if fingerprint(unet) != header.fingerprint:
        raise UserError(f"{path}: was trained on other weights than --base {base or header.base} has; "
                        f"give the base it was trained on ({header.base})")
    context = load_adapter(path, header, tensors, unet, unet.config.cross_attention_dim)
    control = None
    if header.control:  # what it copies is the UNet with the whole LoRA, at any strength
        with lora.merged(unet):
            control = load_control(path, header.control, tensors, unet).to(device, dtype)
    lora.set_strength(unet, strength)
    lora.merge(unet)  # in fp32, then cast once: small updates would vanish in half weights
    for file, scale in loras:
        foreign.add(unet, "unet", file, scale)
    vae = load_vae(base or header.base, device=device, dtype=torch.float32)
    return Generator(unet.to(device, dtype), vae, context.to(device), header, path, control)
