"""Strategy A: UNet LoRA and damage-type embedding trained jointly, VAE frozen. Its defaults: the recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import errors
import foreign
import lora
from adapter import NULL, ClassContext, Header, trained_tensors
from config import parse
from data import load_dataset
from generation import Drawing, draw
from latents import posterior, with_latents
from machine import DTYPES, autocast, choose_checkpointing, choose_device, choose_precision
from pictures import grid, tensor_to_image
from recipe import TrainConfig, out_folder
from sd.diffusion import Diffusion
from sd.unet import UNet
from sd.vae import VAE
from sd.weights import fingerprint, load_unet, load_vae
from seeds import torch_rng
from training import Batch, make_optimizer, train

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


def diffusion_loss(config: Config, unet: UNet, context: ClassContext, batch: Batch) -> Tensor:
    """The diffusion step: ||eps - eps_hat(z_t, t, class)||^2, one mean an image (B,) (DDPM, equation 14)."""
    device, dtype, size = context.null.device, DTYPES[config.precision], config.resolution // 8
    # All that is random about an image is drawn for itself alone: it is the same in any batch.
    rngs = [torch_rng(config.seed, "step", int(epoch), int(item))
            for epoch, item in zip(batch["epoch"], batch["item"], strict=True)]

    def noise() -> Tensor:
        return torch.stack([torch.randn(4, size, size, generator=rng) for rng in rngs]).to(device)

    z_0 = batch["mean"].to(device) + batch["std"].to(device) * noise()
    eps = noise()
    t = torch.stack([torch.randint(0, 1000, (), generator=rng) for rng in rngs]).to(device)
    dropped = torch.stack([torch.rand((), generator=rng) < config.class_dropout for rng in rngs])
    class_id = torch.where(dropped, NULL, batch["class_id"]).to(device)
    with autocast(device, dtype):
        eps_hat = unet(DIFFUSION.add_noise(z_0, eps, t), t, context(class_id))
    return (eps_hat.float() - eps).square().mean(dim=(1, 2, 3))


def preview(config: Config, unet: UNet, vae: VAE, context: ClassContext, classes: list[str]) -> Image.Image:
    """One row a class, always from the same noise. Draws from no generator but its own."""
    drawing = Drawing(seed=config.seed, steps=config.preview_steps, guidance=config.preview_guidance)
    rows = []
    unet.eval()
    vae.to(context.null.device)
    for class_id, name in enumerate(classes):
        with autocast(context.null.device, DTYPES[config.precision]):
            images = draw(unet, vae, context, [(name, class_id, i) for i in range(PREVIEWS)], drawing,
                          config.resolution)
        rows.append([tensor_to_image(image) for image in images])
    unet.train()
    if config.latent_variants:  # nothing needs it before the next preview
        vae.to("cpu")
    return grid(rows, classes)


def main() -> None:
    config = parse(Config, __doc__, EXAMPLE)
    device = choose_device(config.device)
    config.precision = choose_precision(config.precision, device)  # the one used goes into every record
    folder = out_folder(config, "class")
    config.out = str(folder)

    dataset = load_dataset(config)
    counts = [sum(item.class_id == i for item in dataset.items) for i in range(len(dataset.classes))]
    print(f"{len(dataset)} images:", ", ".join(map("{} {}".format, dataset.classes, counts)))

    # On a GPU the frozen base is kept in half precision; on a CPU autocast wants it in fp32.
    unet_dtype = DTYPES[config.precision] if device.type == "cuda" else torch.float32
    unet = load_unet(config.base, device=device, dtype=unet_dtype)
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    header = Header(kind="class", classes=dataset.classes, base=config.base, fingerprint=fingerprint(unet),
                    resolution=config.resolution, tokens_per_class=config.tokens_per_class,
                    class_dropout=config.class_dropout, rank=config.rank, alpha=config.alpha, step=0,
                    config=dataclasses.asdict(config))
    adapters = lora.inject(unet, config.rank, config.alpha, config.dropout, seed=config.seed)
    if config.init_lora:
        foreign.start_from(unet, Path(config.init_lora))
    context = ClassContext(len(dataset.classes), unet.config.cross_attention_dim, config.tokens_per_class,
                           config.init_std, config.seed).to(device)
    unet.checkpointing = choose_checkpointing(
        config.checkpointing, device, config.precision, config.batch_size, config.resolution,
        unet.config.block_out_channels[0])
    unet.train()

    optimizer = make_optimizer(config, (adapters, config.lr),
                               (list(context.parameters()), config.embedding_rate))
    dataset, loss_fn = with_latents(config, "class", dataset, vae, partial(encode, config, vae),
                                    partial(diffusion_loss, config, unet, context))
    train(config, folder, dataset, loss_fn, optimizer, trained_tensors(unet, context), header,
          partial(preview, config, unet, vae, context, dataset.classes))
    print(f"done: {folder}/adapter.safetensors; draw with: python sample.py --ckpt {folder} --out generated")


if __name__ == "__main__":
    errors.run(main)
