"""Strategy A: UNet LoRA and damage-type embedding trained jointly, VAE frozen. Its defaults: the recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoints.prompts import contexts_for
from data import load_dataset
from dataset.padding import cut
from runtime import errors
from runtime.cli import parse
from runtime.device import DTYPES
from runtime.distributed import together
from runtime.pictures import tensor_to_image
from sampling.generation import SamplingConfig, sample_images
from sd.pretrained.weights import load_unet, load_vae
from training.batches import Batch
from training.config import TrainConfig
from training.diffusion import add_noise, per_image_loss
from training.latents import Latents, posterior
from training.loop import train
from training.presets import preset_row
from training.previews import PREVIEWS, Row
from training.setup import add_adapters, announce, announce_end, resolve_run
from training.step_noise import StepNoise

EXAMPLE = """example:
  python train_class.py --data DS-MVTec/bottle
  python train_class.py --data my/bottle --preset better
  python train_class.py --data my/bottle --base tiny    # the embedded model: no download, minutes on a CPU
Then: python sample.py --ckpt runs/bottle-class --out generated/bottle
The same command resumes a run that was interrupted.
"""


@dataclass
class Config(TrainConfig):
    """Strategy A adds nothing to the common flags."""


@together
def main() -> None:
    """Data and models; what a batch goes through; what a preview shows; the training loop."""
    config = parse(Config, __doc__, EXAMPLE, row=preset_row("class"))
    if config.plan:
        from training.plan import print_plan  # slow to import
        return print_plan(config, tokens=config.tokens_per_class, prompts=config.context == "prompt")
    device = resolve_run(config, "class")
    dataset = load_dataset(config)
    announce(dataset)

    unet = load_unet(config.base, device=device, dtype=DTYPES[config.precision])
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    context, trainable = add_adapters(config, "class", dataset, unet)

    def encode(batch: Batch) -> dict[str, Tensor]:
        """image (B,3,R,R) -> the posterior of its latents; cached, unless --latent-variants is 0."""
        mean, std = posterior(vae, batch["image"], config.precision)
        return {"mean": mean, "std": std}

    def loss(batch: Batch, noise: StepNoise) -> Tensor:
        """The diffusion step: ||eps - eps_hat(z_t, t, class)||^2, the mean of each image (B,)."""
        noise.seed_dropout(unet)
        z_0 = batch["mean"] + batch["std"] * noise.normal()  # a posterior sample
        eps, t = noise.normal(), noise.timesteps()
        z_t = add_noise(z_0, eps, t)
        eps_hat = unet(z_t, t, context(noise.drop_class(batch["class_id"])))
        return per_image_loss(eps_hat, eps, t, config.min_snr_gamma, batch.get("own"), weight=1)

    def preview_row(class_id: int, name: str) -> Row:
        """Images of one class, in each preview from the same noise."""
        wanted = [(name, number) for number in range(PREVIEWS)]
        contexts = contexts_for(context, [class_id] * PREVIEWS)
        sampling = SamplingConfig(config.seed, config.preview_steps, guidance=config.preview_guidance)
        images = cut(sample_images(unet, vae, contexts, wanted, sampling, config.resolution), dataset.shape)
        return Row(images, [tensor_to_image(image) for image in images])

    latents = Latents(config, "class", dataset, vae, encode)
    train(config, trainable, latents, loss, preview_row)
    announce_end(config)


if __name__ == "__main__":
    errors.run(main)
