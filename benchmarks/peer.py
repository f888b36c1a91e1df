"""The same work with diffusers and peft, for benchmarks.bench: as the stock LoRA example, or tuned.

    python benchmarks/peer.py train  --data DIR --base DIR --out DIR --max-steps 5 --strategy inpaint
    python benchmarks/peer.py sample --base DIR --out DIR --per-class 2 --steps 5 --guidance 2

`--stock` does as diffusers' LoRA example: the VAE in the loop, convolutions in the default layout. Without
it latents are encoded before the first step, convolutions run channels last and AdamW is fused. In half
precision frozen weights are half, trained ones fp32 under autocast, as in the examples. `--compile` compiles
the UNet's repeated blocks, as diffusers' documentation advises.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def load(flags: argparse.Namespace) -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """UNet and VAE, frozen, on the device."""
    half = Path(flags.base, "unet", "diffusion_pytorch_model.fp16.safetensors").exists()
    how = {"torch_dtype": DTYPES[flags.precision], "variant": "fp16" if half else None}
    folder = "unet_inpaint" if flags.strategy == "inpaint" else "unet"
    unet = UNet2DConditionModel.from_pretrained(flags.base, subfolder=folder, **how)
    vae = AutoencoderKL.from_pretrained(flags.base, subfolder="vae", **how)
    for module in (unet, vae):
        module.requires_grad_(False).to(flags.device)
        if not flags.stock:
            module.to(memory_format=torch.channels_last)
    return unet, vae


def precise(weights: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """The trained weights, in fp32."""
    for weight in weights:
        weight.data = weight.data.float()
    return weights


def with_mask(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A random rectangle as mask (1,R,R), and the image grey in it, as in diffusers' inpainting example."""
    mask, side = torch.zeros_like(image[:1]), image.shape[-1]
    top, left, height, width = (int(torch.randint(side // 8, side // 2, ())) for _ in range(4))
    mask[:, top:top + height, left:left + width] = 1
    return mask, image * (1 - mask)


@torch.no_grad()
def encoded(vae: AutoencoderKL, dataset: ImageFolder, strategy: str) -> Any:
    """For each image: moments, class, mask, and for inpainting the moments of the image without the hole."""
    def moments(image: torch.Tensor) -> torch.Tensor:
        return vae.encode(image[None].to(vae.device, vae.dtype)).latent_dist.parameters[0].float()

    found = []
    for image, class_id in dataset:
        mask, grey = with_mask(image)
        around = moments(grey) if strategy == "inpaint" else 0
        found.append((moments(image), class_id, mask, around))
    return found


def posterior_sample(parameters: torch.Tensor, vae: AutoencoderKL) -> torch.Tensor:
    """A posterior sample from its moments."""
    mean, log_variance = parameters.chunk(2, dim=1)
    return (mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)) * vae.config.scaling_factor


def train(flags: argparse.Namespace) -> None:
    """Steps of the strategy's training, a line in metrics.jsonl for each."""
    unet, vae = load(flags)
    unet.train()
    augment = transforms.Compose([
        transforms.Resize(flags.resolution), transforms.CenterCrop(flags.resolution),
        transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = ImageFolder(Path(flags.data, "image"), augment)
    embedding = torch.nn.Embedding(len(dataset.classes), unet.config.cross_attention_dim, device=flags.device)
    if flags.strategy == "control":  # the UNet and the classes stay as they are
        control = ControlNetModel.from_unet(unet).train().requires_grad_(True)
        weights = precise(list(control.parameters()))
        embedding.requires_grad_(False)
    else:
        unet.add_adapter(LORA)
        weights = precise([p for p in unet.parameters() if p.requires_grad]) + list(embedding.parameters())
    scaler = torch.amp.GradScaler(enabled=flags.precision == "fp16")
    mixed = torch.autocast(flags.device, DTYPES[flags.precision], enabled=flags.precision != "fp32")
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.01, fused=None if flags.stock else True)
    schedule = DDPMScheduler(**SCHEDULE)
    loader = DataLoader(dataset if flags.stock else encoded(vae, dataset, flags.strategy), flags.batch_size,
                        shuffle=True)
    steps = (batch for _ in iter(int, 1) for batch in loader)  # epoch after epoch
    for step in range(flags.max_steps):
        image, class_id, *others = (tensor.to(flags.device) for tensor in next(steps))
        with torch.no_grad():
            if flags.stock:
                z_0 = vae.encode(image.to(vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
            else:
                z_0 = posterior_sample(image, vae)
        z_0 = z_0.float()
        eps, t = torch.randn_like(z_0), torch.randint(0, 1000, (len(z_0),), device=flags.device)
        z_t, tokens, residuals = schedule.add_noise(z_0, eps, t), embedding(class_id)[:, None], {}
        if flags.strategy == "inpaint":
            mask, around = others
            z_t = torch.cat([z_t, F.max_pool2d(mask, 8), posterior_sample(around, vae)], dim=1)
        with mixed:
            if flags.strategy == "control":
                skips, mid = control(z_t, t, tokens, others[0].expand(-1, 3, -1, -1), return_dict=False)
                residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": mid}
            eps_hat = unet(z_t, t, tokens, **residuals).sample
        scaler.scale(F.mse_loss(eps_hat.float(), eps)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        with open(flags.out / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step + 1}) + "\n")


def sample(flags: argparse.Namespace) -> None:
    """Guided images by diffusers' pipeline, with an untrained LoRA fused into the UNet."""
    unet, vae = load(flags)
    unet.add_adapter(LORA)
    unet.fuse_lora()
    unet.unload_lora()
    if flags.compile:
        unet.compile_repeated_blocks()
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    tokens = torch.randn(2, flags.batch_size, 1, unet.config.cross_attention_dim).to(unet.device, unet.dtype)
    for start in range(0, flags.per_class, flags.batch_size):
        images = pipeline(prompt_embeds=tokens[0], negative_prompt_embeds=tokens[1], height=flags.resolution,
                          width=flags.resolution, num_inference_steps=flags.steps,
                          guidance_scale=flags.guidance).images
        for number, image in enumerate(images, start):
            image.save(flags.out / f"{number:03d}.png")


def main() -> None:
    """Train or sample as diffusers and peft do."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=("train", "sample"))
    parser.add_argument("--stock", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--precision", choices=tuple(DTYPES), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--strategy", choices=("class", "inpaint", "control"), default="class")
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
