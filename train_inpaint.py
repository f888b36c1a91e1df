"""Strategy B1: LoRA and damage-type embedding on the inpainting UNet: a chosen damage in a chosen place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import errors
from batches import Batch
from config import flag, parse
from draws import Draws
from errors import UserError
from folders import is_good
from generation import Drawing, paint
from holes import HoleDataset, load_holes
from latents import posterior, with_latents
from learner import Learner, plain_autocast, settle
from machine import DTYPES
from masks import latent_mask
from named import asked
from pictures import grid, outline, tensor_to_image
from previews import Preview
from processes import together
from prompts import DamageContext
from recipe import TrainConfig
from sd.diffusion import Diffusion
from sd.inpainting import CHANNELS, UNetInPicture, load_inpainting_unet
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import load_vae
from training import train
from validation import validation

PREVIEWS = 4  # images a class
DIFFUSION = Diffusion()

EXAMPLE = """example:
  python train_inpaint.py --data DS-MVTec/bottle
  python train_inpaint.py --data my/bottle --base tiny --resolution 128 --epochs 20
Then: python sample.py --ckpt runs/bottle-inpaint --images DS-MVTec/bottle/image/good --out generated/bottle
The same command goes on where it was interrupted.
"""


@dataclass
class Config(TrainConfig):
    """Strategy A's flags, masks, and what the damage weighs."""

    load_masks: bool = flag(True, "read the masks; here they are always needed", group="data")
    defect_weight: float = flag(0.0, "share of the loss that is the mean over the hole alone, however small; "
                                "0 is the plain mean over the picture (the recipe)", group="training",
                                minimum=0, maximum=1)

    def __post_init__(self) -> None:
        """Raises UserError for flags that contradict each other."""
        super().__post_init__()
        if not self.load_masks:
            raise UserError("--no-load-masks: inpainting is learnt from masks; leave it out")


def encode(config: Config, vae: VAE, batch: Batch) -> dict[str, Tensor]:
    """What the diffusion step needs: latents of the image, those of what is around the hole, the latent mask.

    The hole is grey, 0 in [-1, 1], as in the training of the published model.
    """
    mean, std = posterior(vae, batch["image"], config.precision)
    masked_mean, masked_std = posterior(vae, batch["image"] * (1 - batch["hole"]), config.precision)
    return {"mean": mean, "std": std, "masked_mean": masked_mean, "masked_std": masked_std,
            "cells": latent_mask(batch["hole"])}


def diffusion_loss(config: Config, unet: UNet, context: DamageContext, batch: Batch) -> Tensor:
    """The diffusion step: ||eps - eps_hat(z_t, t, class | mask, masked image)||^2, one mean an image (B,).

    --defect-weight w: (1 - w) times the mean over the picture and w times that over the hole.
    """
    device = context.null.device
    draws = Draws(config, batch, device)
    draws.dropout(unet)
    z_0 = draws.latents(batch["mean"], batch["std"])
    z_masked, cells = draws.latents(batch["masked_mean"], batch["masked_std"]), batch["cells"].to(device)
    eps, t, class_id = draws.noise(), draws.timesteps(), draws.class_ids()
    with plain_autocast(config, device):
        in_picture = UNetInPicture(unet, cells, z_masked)
        eps_hat = in_picture(DIFFUSION.add_noise(z_0, eps, t), t, context(class_id))
    error = (eps_hat.float() - eps).square().mean(dim=1, keepdim=True)
    in_hole = (error * cells).sum(dim=(1, 2, 3)) / cells.sum(dim=(1, 2, 3))
    return (1 - config.defect_weight) * error.mean(dim=(1, 2, 3)) + config.defect_weight * in_hole


def preview(config: Config, unet: UNet, vae: VAE, context: DamageContext,
            dataset: HoleDataset) -> Preview:
    """A row a class, its masks on undamaged training photos: the hole outlined, then what was painted."""
    device = context.null.device
    drawing = Drawing(seed=config.seed, steps=config.preview_steps, guidance=config.preview_guidance)
    names = [dataset.classes[item.class_id] for item in dataset.items]
    good = [i for i, name in enumerate(names) if is_good(name)]
    rows, drawn, class_ids = [], [], []
    unet.eval()
    vae.to(device)
    for class_id, name in enumerate(dataset.classes):
        own = [i for i in range(len(names)) if names[i] == name]
        photos = good or own
        hole = torch.stack([dataset.example(i, 0)["hole"] for i in own[:PREVIEWS]])
        image = torch.stack([dataset.example(photos[k % len(photos)], 0)["image"] for k in range(len(hole))])
        with plain_autocast(config, device):
            painted = paint(unet, vae, context, [(name, class_id, k) for k in range(len(hole))], image, hole,
                            drawing)
        rows.append([cell for before, where, after in zip(image, hole, painted, strict=True) for cell in
                     (outline(tensor_to_image(before), where[0].numpy()), tensor_to_image(after))])
        drawn.append(painted)
        class_ids += [class_id] * len(painted)
    unet.train()
    if config.latent_variants:  # nothing needs it before the next preview
        vae.to("cpu")
    return Preview(grid(rows, dataset.classes), torch.cat(drawn), class_ids)


@together
def main() -> None:
    """The command: data and masks, models, then the training loop."""
    config = parse(Config, __doc__, EXAMPLE)
    if config.plan:
        from plan import print_plan  # slow to import
        return print_plan(config, tokens=config.context_length, in_channels=CHANNELS, encodings=2)
    device, folder = settle(config, "inpaint")
    dataset = load_holes(config)
    print(dataset.summary())

    unet, widened = load_inpainting_unet(config.base, device=device, dtype=DTYPES[config.precision])
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    learner = Learner(config, "inpaint", dataset.classes, unet, widened=widened)
    examples, loss_fn = with_latents(config, "inpaint", dataset, vae, partial(encode, config, vae),
                                     partial(diffusion_loss, config, unet, learner.context))
    train(config, folder, examples, loss_fn, learner.optimizer, learner.tensors, learner.header,
          partial(preview, config, unet, vae, learner.context, dataset),
          validation(config, folder, dataset, device))
    print(f"done: {folder}/adapter.safetensors; paint with: python sample.py --ckpt {folder} --images PHOTOS"
          f"{asked('--base', config.base)}{asked('--masks', config.data[0])} --out generated")


if __name__ == "__main__":
    errors.run(main)
