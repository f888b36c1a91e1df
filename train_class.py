"""Strategy A: UNet LoRA and damage-type embedding trained jointly, VAE frozen. By default the seed's recipe."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import errors
import lora
from adapter import NULL, ClassContext, Header, save_adapter, trained_tensors
from config import parse
from data import load_dataset
from generation import Drawing, autocast, choose_device, choose_precision, draw
from pictures import grid, tensor_to_image
from sd.diffusion import Diffusion
from sd.weights import fingerprint, load_unet, load_vae
from seeds import torch_rng
from training import TrainConfig, choose_checkpointing, make_optimizer, run_folder, train

PREVIEWS = 4  # images a class

EXAMPLE = """example:
  python train_class.py --data DS-MVTec/bottle
  python train_class.py --data my/bottle --base tiny --resolution 128 --epochs 20
Then: python sample.py --ckpt runs/bottle-class --out generated/bottle
"""


@dataclass
class Config(TrainConfig):
    """Strategy A adds nothing to the common flags."""


def main() -> None:
    config = parse(Config, __doc__, EXAMPLE)
    folder = run_folder(config, "class")
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)

    dataset = load_dataset(config)
    counts = torch.bincount(torch.tensor([item.class_id for item in dataset.items])).tolist()
    print(f"{len(dataset)} images:", ", ".join(map("{} {}".format, dataset.classes, counts)))

    # On a GPU the frozen base is kept in half precision; on a CPU autocast wants it in fp32.
    unet = load_unet(config.base, device=device, dtype=dtype if device.type == "cuda" else torch.float32)
    vae = load_vae(config.base, device=device, dtype=torch.float32)
    base_fingerprint = fingerprint(unet)
    adapters = lora.inject(unet, config.rank, config.alpha, config.dropout, seed=config.seed)
    context = ClassContext(len(dataset.classes), unet.config.cross_attention_dim, config.tokens_per_class,
                           config.init_std, config.seed).to(device)
    unet.checkpointing = choose_checkpointing(config, unet, device)
    unet.train()
    diffusion = Diffusion()

    def loss_fn(batch: dict[str, Any]) -> Tensor:
        """The diffusion step: ||eps - eps_hat(z_t, t, class)||^2, one mean an image (DDPM, equation 14)."""
        rngs = [torch_rng(config.seed, "step", int(e), int(i))
                for e, i in zip(batch["epoch"], batch["item"], strict=True)]
        size = config.resolution // 8

        def noise() -> Tensor:
            return torch.stack([torch.randn(4, size, size, generator=rng) for rng in rngs]).to(device)

        with torch.no_grad():
            z_0 = vae.encode(batch["image"].to(device), noise())
        eps = noise()
        t = torch.stack([torch.randint(0, 1000, (), generator=rng) for rng in rngs]).to(device)
        dropped = torch.stack([torch.rand((), generator=rng) < config.class_dropout for rng in rngs])
        class_id = torch.where(dropped, NULL, batch["class_id"]).to(device)
        with autocast(device, dtype):
            eps_hat = unet(diffusion.add_noise(z_0, eps, t), t, context(class_id))
        return (eps_hat.float() - eps).square().mean(dim=(1, 2, 3))

    def preview() -> Image.Image:
        """One row a class, always the same noise."""
        drawing = Drawing(seed=config.seed, steps=config.preview_steps, guidance=config.preview_guidance)
        rows = []
        unet.eval()
        for class_id, name in enumerate(dataset.classes):
            with autocast(device, dtype):
                images = draw(unet, vae, context, [(name, class_id, i) for i in range(PREVIEWS)], drawing,
                              config.resolution)
            rows.append([tensor_to_image(image) for image in images])
        unet.train()
        return grid(rows, dataset.classes)

    def save(path: Path, tensors: dict[str, Tensor], step: int) -> None:
        save_adapter(path, tensors, Header(
            kind="class", classes=dataset.classes, base=config.base, fingerprint=base_fingerprint,
            resolution=config.resolution, tokens_per_class=config.tokens_per_class,
            class_dropout=config.class_dropout, rank=config.rank, alpha=config.alpha, step=step,
            config=dataclasses.asdict(config)))

    optimizer = make_optimizer(config, adapters, list(context.parameters()))
    train(config, folder, dataset, loss_fn, optimizer, trained_tensors(unet, context), dtype, save, preview)
    print(f"done: {folder}/adapter.safetensors; draw with: python sample.py --ckpt {folder} --out generated")


if __name__ == "__main__":
    errors.run(main)
