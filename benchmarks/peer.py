"""The same work with diffusers and peft, for bench.py: the stock LoRA example's way, or the best settings.

    python benchmarks/peer.py train  --data DIR --base DIR --out DIR --max-steps 5 [--stock]
    python benchmarks/peer.py sample --base DIR --out DIR --per-class 2 --steps 5 --guidance 2

`--stock` is what diffusers' LoRA example does: the VAE in the loop, convolutions in the default layout.
Without it latents are encoded before the first step, convolutions run channels last and AdamW is fused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def load(flags: argparse.Namespace) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    half = Path(flags.base, "unet", "diffusion_pytorch_model.fp16.safetensors").exists()
    how = {"torch_dtype": torch.float32, "variant": "fp16" if half else None}
    unet = UNet2DConditionModel.from_pretrained(flags.base, subfolder="unet", **how)
    vae = AutoencoderKL.from_pretrained(flags.base, subfolder="vae", **how)
    for module in (unet, vae):
        module.requires_grad_(False)
        if not flags.stock:
            module.to(memory_format=torch.channels_last)
    return unet, vae


@torch.no_grad()
def encoded(vae: AutoencoderKL, dataset: ImageFolder) -> list:
    """(mean and log variance, class) of each image."""
    return [(vae.encode(image[None]).latent_dist.parameters[0], class_id) for image, class_id in dataset]


def train(flags: argparse.Namespace) -> None:
    unet, vae = load(flags)
    unet.add_adapter(LORA)
    unet.train()
    augment = transforms.Compose([
        transforms.Resize(flags.resolution), transforms.CenterCrop(flags.resolution),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = ImageFolder(Path(flags.data, "image"), augment)
    embedding = torch.nn.Embedding(len(dataset.classes), unet.config.cross_attention_dim)
    weights = [p for p in unet.parameters() if p.requires_grad] + list(embedding.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, fused=None if flags.stock else True)
    schedule = DDPMScheduler(**SCHEDULE)
    loader = DataLoader(dataset if flags.stock else encoded(vae, dataset), flags.batch_size,
                        shuffle=True)
    steps = (batch for _ in iter(int, 1) for batch in loader)  # epoch after epoch
    for step in range(flags.max_steps):
        image, class_id = next(steps)
        with torch.no_grad():
            if flags.stock:
                z_0 = vae.encode(image).latent_dist.sample()
            else:
                mean, log_variance = image.chunk(2, dim=1)
                z_0 = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        z_0 = z_0 * vae.config.scaling_factor
        eps, t = torch.randn_like(z_0), torch.randint(0, 1000, (len(z_0),))
        eps_hat = unet(schedule.add_noise(z_0, eps, t), t, embedding(class_id)[:, None]).sample
        F.mse_loss(eps_hat, eps).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with open(flags.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step + 1}) + "\n")


def sample(flags: argparse.Namespace) -> None:
    unet, vae = load(flags)
    unet.add_adapter(LORA)
    unet.fuse_lora()
    unet.unload_lora()
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        requires_safety_checker=False)
    tokens = torch.randn(2, flags.batch_size, 1, unet.config.cross_attention_dim)
    for start in range(0, flags.per_class, flags.batch_size):
        images = pipeline(prompt_embeds=tokens[0], negative_prompt_embeds=tokens[1], height=flags.resolution,
                          width=flags.resolution, num_inference_steps=flags.steps,
                          guidance_scale=flags.guidance).images
        for number, image in enumerate(images, start):
            image.save(flags.out / f"{number:03d}.png")


def main() -> None:
    """The command: train or sample as diffusers and peft do."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("train", "sample"))
    parser.add_argument("--stock", action="store_true")
    for name in ("data", "base"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--guidance", type=float, default=2.0)
    for name, default in (("resolution", 512), ("batch-size", 1), ("max-steps", 5), ("per-class", 2),
                          ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    (train if flags.work == "train" else sample)(flags)


if __name__ == "__main__":
    main()
