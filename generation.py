"""A base and a checkpoint made into images: eps(z_t, t) for the samplers, in previews and sample.py alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import foreign
import lora
from adapter import WIDE, find_adapter, load_adapter, read_adapter
from control import Steered, load_control
from errors import UserError
from guidance import EVERYWHERE, Control, guided
from header import Header
from machine import in_precision
from masks import latent_mask
from named import followed
from prompts import DamageContext, make_context
from sd.convolution import pack
from sd.diffusion import Eps, Noise, ddim, ddpm, dpm_solver, first_abar, solver_timesteps
from sd.inpainting import UNetInPicture, load_inpainting_unet
from sd.layers import set_fast
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import fingerprint, load_unet, load_vae
from seeds import torch_rng

Wanted = tuple[str, int, int]  # an image to draw: class name, class id, number
SAMPLERS = ("ddim", "ddpm", "dpm++", "dpm++linspace")


@dataclass(frozen=True)
class Drawing:
    """How to draw: the settings that, with a seed, a class and a number, fix an image."""

    seed: int = 42
    steps: int = 50
    sampler: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    strength: float = 1.0  # below 1 the start is a noised picture, and the first steps are left out
    guidance_interval: Sequence[int] = EVERYWHERE  # first and last timestep at which guidance counts

    @property
    def start(self) -> int:
        """The number of steps left out."""
        return self.steps - int(self.steps * self.strength)


def run_sampler(drawing: Drawing, eps: Eps, z: Tensor, noise: Noise) -> Iterator[Tensor]:
    """The chosen sampler, started from z: z_T, or what `noised` gives."""
    steps, start = drawing.steps, drawing.start
    if drawing.sampler == "ddim":
        return ddim(eps, z, steps=steps, eta=drawing.eta, noise=noise, start=start)
    if drawing.sampler == "ddpm":
        return ddpm(eps, z, steps=steps, noise=noise, start=start)
    return dpm_solver(eps, z, steps=steps, karras=drawing.sampler == "dpm++", start=start)


def noised(drawing: Drawing, z_0: Tensor, noise: Tensor) -> Tensor:
    """z_0 with as much noise as the first step of `drawing` takes it to have."""
    if drawing.sampler in ("ddim", "ddpm"):
        abar = first_abar(drawing.steps, drawing.start)
    else:
        _, levels = solver_timesteps(drawing.steps, karras=drawing.sampler == "dpm++")
        abar = 1 / (1 + levels[drawing.start] ** 2)
    return math.sqrt(abar) * z_0 + math.sqrt(1 - abar) * noise


def noise_for(wanted: list[Wanted], seed: int, *step: int | str, size: int) -> Tensor:
    """(B, 4, size, size) on the CPU: standard normal, a function of seed, step, class name and number."""
    return torch.stack([torch.randn(4, size, size, generator=torch_rng(seed, *step, name, number))
                        for name, _, number in wanted])


@torch.no_grad()
def draw(unet: UNet | UNetInPicture, vae: VAE, context: DamageContext, wanted: list[Wanted], drawing: Drawing,
         resolution: int, control: Control | None = None, z_0: Tensor | None = None) -> Tensor:
    """Draw images (B, 3, R, R) in [-1, 1], R = resolution: one for each (class name, class id, number).

    z_0: latents (B, 4, R/8, R/8) of the pictures that drawing begins with where its strength is below 1.

    The noise of an image depends on (seed, class name, number) alone, so batches can be cut anywhere. Its
    pixels are then the same but for rounding: with another batch size the system's matrix products and
    convolutions add up in another order.
    """
    device = context.null.device

    def noise(*step: int | str) -> Tensor:
        return noise_for(wanted, drawing.seed, *step, size=resolution // 8).to(device)

    class_id = torch.tensor([i for _, i, _ in wanted], device=device)
    eps = guided(unet, context, class_id, drawing.guidance, control, drawing.guidance_interval)
    z = noised(drawing, z_0, noise("z_T")) if drawing.start else noise("z_T")
    *_, z = run_sampler(drawing, eps, z, lambda i: noise("step", i))
    return _decoded(vae, z, unet.dtype)


def _decoded(vae: VAE, z_0: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents (B, 4, R/8, R/8) -> pictures (B, 3, R, R) in [-1, 1]: one by one, for little memory."""
    pictures = [in_precision(partial(vae.decode, one.float()), one.device, dtype) for one in z_0.split(1)]
    return torch.cat(pictures).clamp(-1, 1)


@torch.no_grad()
def paint(unet: UNet, vae: VAE, context: DamageContext, wanted: list[Wanted], image: Tensor, hole: Tensor,
          drawing: Drawing, control: Control | None = None) -> Tensor:
    """Draw into pictures: image (B, 3, R, R) in [-1, 1] and hole (B, 1, R, R) in {0, 1} -> as `draw`.

    unet: one of nine channels. What it returns beside the hole is the VAE's picture of the picture.
    """
    device, resolution = context.null.device, image.shape[-1]
    image, hole = image.to(device), hole.to(device)

    def encode(picture: Tensor, key: str) -> Tensor:
        noise = noise_for(wanted, drawing.seed, key, size=resolution // 8).to(device)
        with torch.autocast(device.type, enabled=False):
            return torch.cat([vae.encode(*one) for one in zip(picture.split(1), noise.split(1), strict=True)])

    in_picture = UNetInPicture(unet, latent_mask(hole), encode(image * (1 - hole), "masked"))
    z_0 = encode(image, "photo") if drawing.start else None
    return draw(in_picture, vae, context, wanted, drawing, resolution, control, z_0)


@dataclass(frozen=True)
class Generator:
    """A checkpoint on its base, ready to draw."""

    unet: UNet
    vae: VAE
    context: DamageContext
    header: Header
    path: Path
    steered: Steered | None  # in checkpoints of kind "control"

    def pack(self) -> None:
        """Let a CPU draw quicker. The networks' convolutions can only compute from then on."""
        for net in (self.unet, self.steered.net) if self.steered else (self.unet,):
            pack(net, gradients=False)

    def _ids(self, wanted: list[tuple[str, int]]) -> list[Wanted]:
        return [(name, self.header.classes.index(name), number) for name, number in wanted]

    def draw(self, wanted: list[tuple[str, int]], drawing: Drawing, control: Control | None = None) -> Tensor:
        """Images (B, 3, R, R) in [-1, 1] for (class name, number) pairs; R is the training resolution."""
        return draw(self.unet, self.vae, self.context, self._ids(wanted), drawing, self.header.resolution,
                    control)

    def paint(self, wanted: list[tuple[str, int]], image: Tensor, hole: Tensor, drawing: Drawing,
              control: Control | None = None) -> Tensor:
        """The same, drawn into the holes (B, 1, R, R) of pictures (B, 3, R, R)."""
        return paint(self.unet, self.vae, self.context, self._ids(wanted), image, hole, drawing, control)

    @torch.no_grad()
    def rendered(self, image: Tensor) -> Tensor:
        """Pictures (B, 3, R, R) in [-1, 1] through the VAE and back: what painting nothing would give."""
        device = self.vae.quant_conv.weight.device
        z_0 = torch.cat([self.vae.posterior(one.to(device))[0] for one in image.split(1)])
        return _decoded(self.vae, z_0, self.unet.dtype)


def base_of(path: Path, header: Header) -> str:
    """The base that a checkpoint names. Raises UserError where that is a path which is not to be followed."""
    return followed(header.base, path, f"if you trust it, add --base {header.base}")


def _load_base(path: Path, header: Header, given: str | None, dtype: torch.dtype, *,
               widened: bool) -> tuple[str, UNet]:
    """The base of the checkpoint `path`, and its UNet on the CPU, in `dtype` but for what LoRA adapts.

    That is in fp32, for there the LoRA is added and then cast once: small updates would vanish in half
    weights.
    """
    base, how = given or base_of(path, header), {"device": "cpu", "dtype": dtype, "precise": lora.TARGETS}
    try:
        if header.kind == "inpaint":
            unet, _ = load_inpainting_unet(base, widened=widened, **how)
        else:
            unet = load_unet(base, **how)
    except UserError as error:
        if given is not None:
            raise
        raise UserError(f"{path}: the base it was trained on cannot be loaded ({error}); say "
                        "with --base where that model lies now") from error
    if fingerprint(unet) != header.fingerprint:
        raise UserError(f"{path}: was trained on other weights than --base {base} has; give the base it was "
                        f"trained on ({header.base})")
    return base, unet


def load_generator(ckpt: Path, *, base: str | None, strength: float, device: torch.device,
                   dtype: torch.dtype, loras: Sequence[tuple[Path, float]] = (),
                   control: str | None = None, fast: bool = True) -> Generator:
    """Load a checkpoint and the base that its header names (or `base`), merge its LoRA at `strength`.

    loras: LoRA files of others to add, each with its strength, where prompts are used to the encoder as well.
    control: the checkpoint whose ControlNet steers it, if that is not its own. fast: False leaves the LoRA
    unmerged and all exact shortcuts out, to compare with.
    Raises UserError for a damaged file or a base with other weights than the checkpoint was trained on.
    """
    path = find_adapter(ckpt)
    tensors, header = read_adapter(path)
    # Others' LoRAs may reach any layer, and a ControlNet begins with a copy of the UNet's encoder.
    exact = torch.float32 if loras or header.control else dtype
    base, unet = _load_base(path, header, base, exact, widened=WIDE in tensors)
    context = make_context(header, base, unet.config.cross_attention_dim, device, loras=loras)
    load_adapter(path, header, tensors, unet, context)
    steered = None
    if header.control:  # what it copies is the UNet with the whole LoRA, at any strength
        with lora.merged(unet):
            net = load_control(path, header.control, tensors, unet).to(device, dtype)
        steered = Steered(net, context, header)
    if control:
        steered = load_generator(Path(control), base=None, strength=1.0, device=device, dtype=dtype,
                                 fast=fast).steered
    lora.set_strength(unet, strength)
    if fast:
        lora.merge(unet)
    for file, scale in loras:
        foreign.add(unet, "unet", file, scale)
    vae = load_vae(base, device=device, dtype=torch.float32)
    unet.to(device, dtype)
    for net in (unet, steered.net) if steered else (unet,):
        set_fast(net, fast)
    return Generator(unet, vae, context, header, path, steered)
