"""The image generation loop, for previews and sample.py: noise, the sampler's steps, the VAE's decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from dataset.masks import latent_mask
from runtime.device import in_precision
from runtime.errors import NotFinite, UserError
from runtime.seeds import torch_rng
from sd.guidance import ALL_TIMESTEPS, Contexts, ControlCondition, guided
from sd.inpainting import UNetInPicture
from sd.samplers import SAMPLERS
from sd.unet import UNet
from sd.vae import VAE

Wanted = tuple[str, int]  # an image to draw: class name, number


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample: the settings that, with a seed, a class and a number, determine an image."""

    seed: int = 42
    steps: int = 50
    sampler: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    strength: float = 1.0  # below 1 the start is a noised image, and the first steps are left out
    # The first and last timestep with guidance.
    guidance_interval: list[int] = field(default_factory=lambda: list(ALL_TIMESTEPS))

    def __post_init__(self) -> None:
        """Raises UserError for settings that contradict each other."""
        interval, sampler = self.guidance_interval, SAMPLERS[self.sampler]
        if len(interval) != 2 or interval[0] > interval[1]:
            raise UserError(f"--guidance-interval {' '.join(map(str, interval))}: give the first and the "
                            "last timestep, such as 200 800")
        if self.eta and "eta" not in sampler.takes:
            raise UserError(f"--eta {self.eta:g}: --sampler {self.sampler} has none")
        if self.steps > sampler.most_steps:
            raise UserError(f"--steps {self.steps}: {self.sampler} has at most {sampler.most_steps}; 20 are "
                            "usually enough")
        if int(self.steps * self.strength) < 1:
            raise UserError(f"--strength {self.strength:g}: of --steps {self.steps} none would be left; give "
                            "more of either")

    @property
    def start(self) -> int:
        """The number of steps left out."""
        return self.steps - int(self.steps * self.strength)


def noise_for(wanted: list[Wanted], seed: int, *step: int | str, size: int) -> Tensor:
    """(B, 4, size, size) on the CPU: standard normal, a function of seed, step, class name and number."""
    return torch.stack([torch.randn(4, size, size, generator=torch_rng(seed, *step, name, number))
                        for name, number in wanted])


@torch.no_grad()
def sample_images(unet: UNet | UNetInPicture, vae: VAE, contexts: Contexts, wanted: list[Wanted],
                  sampling: SamplingConfig, resolution: int, control: ControlCondition | None = None,
                  z_0: Tensor | None = None) -> Tensor:
    """Sample images (B, 3, R, R) in [-1, 1], R = resolution: one for each (class name, number).

    contexts: of these images, (B, N, dim). z_0: latents (B, 4, R/8, R/8) of the images that sampling starts
    from where its strength is below 1.

    The noise of an image depends on (seed, class name, number) alone, so batches can be cut anywhere. With
    another batch size its pixels differ by rounding only: matrix products then add up in another order.
    """
    device = contexts.damage.device

    def noise(*step: int | str) -> Tensor:
        return noise_for(wanted, sampling.seed, *step, size=resolution // 8).to(device)

    sampler, z = SAMPLERS[sampling.sampler], noise("z_T")
    if z_0 is not None:
        abar = sampler.abar(sampling.steps)[sampling.start]
        z = math.sqrt(abar) * z_0 + math.sqrt(1 - abar) * z
    eps = guided(unet, contexts, sampling.guidance, control, sampling.guidance_interval)
    given = {"eta": sampling.eta, "noise": lambda i: noise("step", i)}
    *_, z = sampler.run(eps, z, steps=sampling.steps, start=sampling.start,
                        **{name: given[name] for name in sampler.takes})
    if not z.isfinite().all():
        raise NotFinite("the latents overflowed; use --precision fp32 (or bf16), or fewer --guidance")
    return decoded(vae, z, unet.dtype)


@torch.no_grad()
def reconstruct(vae: VAE, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Images (B, 3, R, R) in [-1, 1] after a VAE round trip, decoded in `dtype`."""
    device = vae.quant_conv.weight.device
    return decoded(vae, torch.cat([vae.posterior(one.to(device))[0] for one in image.split(1)]), dtype)


def decoded(vae: VAE, z_0: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents (B, 4, R/8, R/8) -> images (B, 3, R, R) in [-1, 1], one at a time to save memory.

    On a GPU bf16 becomes fp16, whose mantissa is longer.
    """
    dtype = torch.float16 if z_0.is_cuda and dtype == torch.bfloat16 else dtype
    images = [in_precision(partial(vae.decode, one.float()), one.device, dtype) for one in z_0.split(1)]
    return torch.cat(images).clamp(-1, 1)


@torch.no_grad()
def inpaint_images(unet: UNet, vae: VAE, contexts: Contexts, wanted: list[Wanted], image: Tensor,
                   hole: Tensor, sampling: SamplingConfig, control: ControlCondition | None = None) -> Tensor:
    """Paint into images (B, 3, R, R) in [-1, 1] where hole (B, 1, R, R) is 1; returns as `sample_images`.

    unet: one of nine channels. Outside the hole the result is the image after a VAE round trip.
    """
    device, resolution = contexts.damage.device, image.shape[-1]
    image, hole = image.to(device), hole.to(device)

    def encode(pixels: Tensor, key: str) -> Tensor:
        noise = noise_for(wanted, sampling.seed, key, size=resolution // 8).to(device)
        with torch.autocast(device.type, enabled=False):
            return torch.cat([vae.encode(*one) for one in zip(pixels.split(1), noise.split(1), strict=True)])

    in_picture = UNetInPicture(unet, latent_mask(hole), encode(image * (1 - hole), "masked"))
    z_0 = encode(image, "photo") if sampling.start else None
    return sample_images(in_picture, vae, contexts, wanted, sampling, resolution, control, z_0)
