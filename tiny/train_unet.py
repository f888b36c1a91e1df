"""Train the embedded base's UNet and text encoder on procedural images: `python -m tiny.train_unet`.

Latent diffusion as in Rombach et al. 2022, on what tiny/train_vae.py left. The words of a picture go through
a small CLIP text model that is trained along; a tenth of the pictures lose theirs, so that guidance works.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

import errors
from machine import DTYPES, autocast
from masks import latent_mask
from sd.diffusion import Diffusion, ddim
from sd.layers import ResnetBlock, SpatialTransformer
from sd.unet import UNet, UNetConfig
from sd.vae import VAE
from sd.weights import load_unet, load_vae
from seeds import torch_rng
from tiny.common import HELD_OUT, draw_images, prepare, save_component
from tiny.procedural import VOCABULARY
from tiny.run import Run, training_flags
from tiny.words import write_tokenizer

CONFIG = UNetConfig(block_out_channels=(96, 128, 80, 48), layers_per_block=1, cross_attention_dim=128,
                    attention_head_dim=2, norm_num_groups=16)
TEXT = CLIPTextConfig(vocab_size=len(VOCABULARY), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
                      num_attention_heads=4, max_position_embeddings=12, projection_dim=128, bos_token_id=0,
                      eos_token_id=1, pad_token_id=1)
POOL = 24_576  # pictures kept as latents; each step adds fresh ones over the oldest


@torch.no_grad()
def quiet_start(unet: UNet) -> None:
    """Residual branches and the output at zero: the network starts as the identity and learns sooner."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, SpatialTransformer):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(unet.conv_out.weight)


class Words(nn.Module):
    """Words -> context (B, 12, 128): the last hidden states of a small CLIP text model."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = CLIPTextModel(TEXT)
        self.index = {word: i for i, word in enumerate(VOCABULARY)}

    def ids(self, words: list[tuple[str, ...]]) -> Tensor:
        """(B, 12) token ids: start, the words, end, padded with end. An empty tuple is the null condition."""
        rows = [[0, *(self.index[w] for w in ws)] for ws in words]
        return torch.tensor([row + [1] * (TEXT.max_position_embeddings - len(row)) for row in rows])

    def forward(self, ids: Tensor) -> Tensor:
        return self.clip(input_ids=ids).last_hidden_state


class Denoiser(nn.Module):
    """UNet and text encoder as one set of weights to train and to average."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.words = UNet(CONFIG), Words()

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(z_t, t, self.words(ids))

    def read(self, folder: Path) -> None:
        """Take the weights of a base: `folder`/unet and `folder`/text_encoder."""
        self.unet.load_state_dict(load_unet(str(folder), device="cpu", dtype=torch.float32).state_dict())
        self.words.clip.load_state_dict(
            CLIPTextModel.from_pretrained(folder / "text_encoder", variant="fp16").float().state_dict())


class Pool:
    """A ring of encoded pictures: posterior mean and deviation, token ids, the cells that show a damage."""

    def __init__(self, vae: VAE, words: Words, precision: str = "fp32") -> None:
        self.vae, self.words, self.made, self.dtype = vae, words, 0, DTYPES[precision]
        self.mean, self.std = torch.zeros(POOL, 4, 16, 16), torch.zeros(POOL, 4, 16, 16)
        self.ids = torch.ones(POOL, TEXT.max_position_embeddings, dtype=torch.long)
        self.cells = torch.zeros(POOL, 1, 16, 16)

    @torch.no_grad()
    def add(self, image: Tensor, words: list[tuple[str, ...]], mask: Tensor) -> None:
        where = torch.arange(self.made, self.made + len(image)) % POOL
        mean, std = self.posterior(image)
        self.mean[where], self.std[where] = mean.float().cpu(), std.float().cpu()
        self.ids[where], self.cells[where] = self.words.ids(words), latent_mask(mask)
        self.made += len(image)

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The VAE's, computed where it is."""
        device = next(self.vae.parameters()).device
        with autocast(device, self.dtype):
            return self.vae.posterior(image.to(device, memory_format=torch.channels_last))

    def batch(self, size: int, step: int) -> tuple[Tensor, ...]:
        """z_0, eps, t, ids (a tenth of them null) and cells: a function of the step and the pool."""
        rng = torch_rng("unet", step)
        i = torch.randint(0, min(self.made, POOL), (size,), generator=rng)
        z_0 = self.mean[i] + self.std[i] * torch.randn(size, 4, 16, 16, generator=rng)
        drop = torch.rand(size, generator=rng) < 0.1
        ids = torch.where(drop[:, None], self.words.ids([()]), self.ids[i])
        eps, t = torch.randn(z_0.shape, generator=rng), torch.randint(0, 1000, (size,), generator=rng)
        return z_0, eps, t, ids, self.cells[i]


def min_snr(t: Tensor, gamma: float = 5.0) -> Tensor:
    """(B,) weights min(SNR, gamma) / SNR of the loss on eps: shapes count for more than grain, and are learnt
    sooner (Hang et al. 2023, arXiv 2303.09556, equation 8 for eps)."""
    abar = Diffusion().abar.to(t.device)[t]
    snr = abar / (1 - abar)
    return snr.clamp(max=gamma) / snr


def in_cells(error: Tensor, cells: Tensor) -> Tensor:
    """(B,) means of `error` (B, 4, h, w) over the `cells` (B, 1, h, w) alone, 0 where there are none."""
    error, count = error.mean(dim=1, keepdim=True), cells.sum(dim=(1, 2, 3))
    return (error * cells).sum(dim=(1, 2, 3)) / count.clamp(min=1)


def pool_flags(parser: argparse.ArgumentParser) -> None:
    """What a training from a pool takes beside tiny/run.py's flags."""
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--first", type=int, default=1024, help="pictures drawn before the first step")


def component_config(config: UNetConfig) -> dict[str, Any]:
    """A UNet's config.json in diffusers' layout."""
    return {"_class_name": "UNet2DConditionModel", **vars(config), "sample_size": 16, "act_fn": "silu",
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "flip_sin_to_cos": True,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "freq_shift": 0, "norm_eps": 1e-5}


def export(model: Denoiser, folder: Path) -> None:
    """Write unet/, text_encoder/ and tokenizer/ in diffusers' layout."""
    save_component(folder / "unet", model.unet, component_config(CONFIG))
    copy.deepcopy(model.words.clip).half().save_pretrained(folder / "text_encoder", variant="fp16")
    write_tokenizer(folder / "tokenizer", TEXT.max_position_embeddings)


@torch.no_grad()
def held_out_losses(model: Denoiser, pool: Pool) -> dict[str, float]:
    """The plain loss on held-out pictures at fixed noise and timesteps: everywhere, and in damages alone."""
    z_0, eps, t, ids, cells = pool.batch(256, -1)
    z_t = Diffusion().add_noise(z_0, eps, t)
    parts = zip(*(x.split(64) for x in (z_t, t, ids)), strict=True)
    error = (torch.cat([model(*part) for part in parts]) - eps).square()
    damaged = cells.amax(dim=(1, 2, 3)) > 0
    return {"held_out_loss": error.mean().item(),
            "held_out_damage": in_cells(error, cells)[damaged].mean().item()}


@torch.no_grad()
def draw_sheet(model: Denoiser, vae: VAE, path: Path, count: int, guidance: float = 3.0) -> None:
    """Samples for the words of held-out pictures, above the pictures themselves."""
    image, words, _ = draw_images(range(HELD_OUT + 5000, HELD_OUT + 5000 + count))
    context = torch.cat([model.words(model.words.ids(words)), model.words(model.words.ids([()] * count))])

    def eps(z_t: Tensor, t: int) -> Tensor:
        both = model.unet(torch.cat([z_t, z_t]), torch.full((2 * count,), t), context)
        cond, null = both.chunk(2)
        return null + guidance * (cond - null)

    *_, z = ddim(eps, torch.randn(count, 4, 16, 16, generator=torch_rng("sheet")), steps=30)
    rows = torch.cat([torch.cat([*block.unbind()], dim=2) for pair in
                      zip(vae.decode(z).split(8), image.split(8), strict=True) for block in pair], dim=1)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path)


def main() -> None:
    """The command: train on from where it was, write weights and samples."""
    parser = training_flags(__doc__, steps=2000, lr=1.5e-3)
    pool_flags(parser)
    parser.add_argument("--start", type=Path, help="begin with the weights of this base")
    parser.add_argument("--start-step", type=int, default=0, help="the step that those were trained for")
    parser.add_argument("--frozen-text", action="store_true",
                        help="leave the text encoder as it is: the inpainting UNet reads it too")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = load_vae(str(args.out), device=args.device, dtype=torch.float32)
    prepare(vae, args.device, args.precision)
    model = prepare(Denoiser(), args.device, args.precision)
    quiet_start(model.unet)
    if args.start:
        model.read(args.start)
    model.words.requires_grad_(not args.frozen_text)
    run, diffusion = Run(args, "unet", model, 0.9995, args.start_step), Diffusion()

    pool, test = Pool(vae, model.words, args.precision), Pool(vae, model.words)
    test.add(*draw_images(range(HELD_OUT + 2000, HELD_OUT + 2000 + args.held_out)))
    next_seed = args.first + run.start * args.fresh
    for seed in tqdm(range(max(0, next_seed - POOL), next_seed, 32), "drawing", disable=None):
        pool.add(*draw_images(range(seed, seed + 32)))
    for step, pictures in run.steps(args.first):
        pool.add(*pictures)
        z_0, eps, t, ids, _ = (x.to(args.device) for x in pool.batch(args.batch_size, step))
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            eps_hat = model(diffusion.add_noise(z_0, eps, t), t, ids)
        loss = ((eps_hat.float() - eps).square().mean(dim=(1, 2, 3)) * min_snr(t)).mean()
        run.update(step, loss)
        if run.due(step, 500):
            run.save(step, held_out_losses(run.average, test) | {"loss": loss.item()})
            export(run.average, args.out)
        if run.due(step, 1000):
            draw_sheet(run.average, vae, args.out / "samples.png", min(32, args.held_out))


if __name__ == "__main__":
    errors.run(main)
