"""Strategy B1: LoRA and damage-type embedding on the inpainting UNet: a chosen damage in a chosen place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.prompts import contexts_for
from dataset.masks import latent_mask
from runtime import errors
from runtime.cli import changed, flag, parse
from runtime.device import DTYPES
from runtime.distributed import together
from runtime.errors import UserError
from runtime.pictures import outline, tensor_to_image
from sampling.generation import SamplingConfig, inpaint_images
from sd.inpainting import CHANNELS, UNetInPicture
from sd.pretrained.inpainting import load_inpainting_unet
from sd.pretrained.weights import load_vae
from training.batches import Batch
from training.config import RunConfig, TrainConfig
from training.diffusion import add_noise, per_image_loss
from training.holes import load_holes
from training.latents import Latents, posterior
from training.loop import train
from training.presets import preset_row
from training.previews import PREVIEWS, Row
from training.setup import add_adapters, announce, announce_end, resolve_run
from training.step_noise import StepNoise

EXAMPLE = """example:
  python train_inpaint.py --data DS-MVTec/bottle
  python train_inpaint.py --data my/bottle --preset better
  python train_inpaint.py --data my/bottle --base tiny    # the embedded model: no download, minutes on a CPU
Then: python sample.py --ckpt runs/bottle-inpaint --images DS-MVTec/bottle/image/good --out generated/bottle
The same command resumes a run that was interrupted.
"""


@dataclass
class Config(TrainConfig):
    """Strategy A's flags, masks, and the weight of the damage."""

    load_masks: bool = changed(RunConfig, "load_masks", True, help="read the masks; inpainting needs them")
    defect_weight: float = flag(0.0, "share of the loss that is the mean over the hole, whatever its size; "
                                "0: the plain mean over the image (the recipe)", group="experiments",
                                minimum=0, maximum=1)

    def __post_init__(self) -> None:
        """Raises UserError for flags that contradict each other."""
        super().__post_init__()
        if not self.load_masks:
            raise UserError("--no-load-masks: inpainting is learnt from masks; omit the flag")
        if self.fit != "crop":
            raise UserError(f"--fit {self.fit}: inpainting paints squares of a photo of any shape and keeps "
                            "the rest; omit the flag")


@together
def main() -> None:
    """Data and models; what a batch goes through; what a preview shows; the training loop."""
    config = parse(Config, __doc__, EXAMPLE, row=preset_row("inpaint"))
    if config.plan:
        from training.plan import print_plan  # slow to import
        return print_plan(config, tokens=config.tokens_per_class, prompts=config.context == "prompt",
                          in_channels=CHANNELS, encodings=2)
    device = resolve_run(config, "inpaint")
    dataset = load_holes(config)
    announce(dataset)

    unet, widened = load_inpainting_unet(config.base, device=device, dtype=DTYPES[config.precision])
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    context, trainable = add_adapters(config, "inpaint", dataset, unet, widened=widened)

    def encode(batch: Batch) -> dict[str, Tensor]:
        """image (B,3,R,R), hole (B,1,R,R) -> posteriors of image and masked image, and the latent mask.

        The hole of the masked image is grey, 0 in [-1,1], as in the training of the published model.
        """
        mean, std = posterior(vae, batch["image"], config.precision)
        masked_mean, masked_std = posterior(vae, batch["image"] * (1 - batch["hole"]), config.precision)
        return {"mean": mean, "std": std, "masked_mean": masked_mean, "masked_std": masked_std,
                "cells": latent_mask(batch["hole"])}

    def loss(batch: Batch, noise: StepNoise) -> Tensor:
        """The diffusion step: ||eps - eps_hat(z_t, t, class | mask, masked image)||^2, means (B,)."""
        noise.seed_dropout(unet)
        z_0 = batch["mean"] + batch["std"] * noise.normal()  # posterior samples
        z_masked = batch["masked_mean"] + batch["masked_std"] * noise.normal()
        eps, t = noise.normal(), noise.timesteps()
        z_t = add_noise(z_0, eps, t)
        in_picture = UNetInPicture(unet, batch["cells"], z_masked)
        eps_hat = in_picture(z_t, t, context(noise.drop_class(batch["class_id"])))
        return per_image_loss(eps_hat, eps, t, config.min_snr_gamma, batch["cells"], config.defect_weight)

    def preview_row(class_id: int, name: str) -> Row:
        """One class: its holes outlined on undamaged training photos, each beside the inpainted result."""
        images, holes = dataset.preview_inputs(class_id, PREVIEWS)
        wanted = [(name, number) for number in range(len(images))]
        contexts = contexts_for(context, [class_id] * len(images))
        sampling = SamplingConfig(config.seed, config.preview_steps, guidance=config.preview_guidance)
        painted = inpaint_images(unet, vae, contexts, wanted, images, holes, sampling)
        return Row(painted, [picture for before, hole, after in zip(images, holes, painted, strict=True)
                             for picture in (outline(tensor_to_image(before), hole[0].numpy()),
                                             tensor_to_image(after))])

    latents = Latents(config, "inpaint, placed by surroundings", dataset, vae, encode)
    train(config, trainable, latents, loss, preview_row)
    announce_end(config, images=" --images PHOTOS", masks=True)


if __name__ == "__main__":
    errors.run(main)
