"""Strategy A: UNet LoRA and damage-type embedding trained jointly, VAE frozen. Its defaults: the recipe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import errors
from batches import Batch
from config import parse
from data import load_dataset
from draws import Draws
from generation import Drawing, draw
from latents import posterior, with_latents
from learner import Learner, plain_autocast, settle
from machine import DTYPES
from named import asked
from pictures import grid, tensor_to_image
from previews import Preview
from processes import together
from prompts import DamageContext
from recipe import TrainConfig
from sd.diffusion import Diffusion
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import load_unet, load_vae
from training import train
from validation import validation

PREVIEWS = 4  # images a class
DIFFUSION = Diffusion()

EXAMPLE = """example:
  python train_class.py --data DS-MVTec/bottle
  python train_class.py --data my/bottle --base tiny --resolution 128 --epochs 20
Then: python sample.py --ckpt runs/bottle-class --out generated/bottle
The same command goes on where it was interrupted.
"""


@dataclass
class Config(TrainConfig):
    """Strategy A adds nothing to the common flags."""


def encode(config: Config, vae: VAE, batch: Batch) -> dict[str, Tensor]:
    """What the diffusion step needs of the images."""
    mean, std = posterior(vae, batch["image"], config.precision)
    return {"mean": mean, "std": std}


def diffusion_loss(config: Config, unet: UNet, context: DamageContext, batch: Batch) -> Tensor:
    """The diffusion step: ||eps - eps_hat(z_t, t, class)||^2, one mean an image (B,) (DDPM, equation 14)."""
    device = context.null.device
    draws = Draws(config, batch, device)
    draws.dropout(unet)
    z_0 = draws.latents(batch["mean"], batch["std"])
    eps, t, class_id = draws.noise(), draws.timesteps(), draws.class_ids()
    with plain_autocast(config, device):
        eps_hat = unet(DIFFUSION.add_noise(z_0, eps, t), t, context(class_id))
    return (eps_hat.float() - eps).square().mean(dim=(1, 2, 3))


def preview(config: Config, unet: UNet, vae: VAE, context: DamageContext, classes: list[str]) -> Preview:
    """One row a class, always from the same noise. Draws from no generator but its own."""
    drawing = Drawing(seed=config.seed, steps=config.preview_steps, guidance=config.preview_guidance)
    drawn = []
    unet.eval()
    vae.to(context.null.device)
    for class_id, name in enumerate(classes):
        with plain_autocast(config, context.null.device):
            drawn.append(draw(unet, vae, context, [(name, class_id, i) for i in range(PREVIEWS)], drawing,
                              config.resolution))
    unet.train()
    if config.latent_variants:  # nothing needs it before the next preview
        vae.to("cpu")
    picture = grid([[tensor_to_image(image) for image in images] for images in drawn], classes)
    return Preview(picture, torch.cat(drawn), [i for i in range(len(classes)) for _ in range(PREVIEWS)])


@together
def main() -> None:
    """The command: data, models, then the training loop."""
    config = parse(Config, __doc__, EXAMPLE)
    if config.plan:
        from plan import print_plan  # slow to import
        return print_plan(config, tokens=config.context_length)
    device, folder = settle(config, "class")
    dataset = load_dataset(config)
    print(dataset.summary())

    unet = load_unet(config.base, device=device, dtype=DTYPES[config.precision])
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    learner = Learner(config, "class", dataset.classes, unet)
    examples, loss_fn = with_latents(config, "class", dataset, vae, partial(encode, config, vae),
                                     partial(diffusion_loss, config, unet, learner.context))
    train(config, folder, examples, loss_fn, learner.optimizer, learner.tensors, learner.header,
          partial(preview, config, unet, vae, learner.context, dataset.classes),
          validation(config, folder, dataset, device))
    print(f"done: {folder}/adapter.safetensors; draw with: python sample.py --ckpt {folder}"
          f"{asked('--base', config.base)} --out generated")


if __name__ == "__main__":
    errors.run(main)
