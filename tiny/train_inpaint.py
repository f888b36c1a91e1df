"""Train the embedded base's inpainting UNet on procedural images: `python -m tiny.train_inpaint`.

It starts as the base's own UNet (tiny/train_unet.py) with five more input channels of zero weights, and fills
holes by words: where the damage is with its words, and in the undamaged picture, the same hole among others,
with "good". The text encoder stays as it is. Writes unet_inpaint/ beside unet/.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel

import errors
from machine import DTYPES, autocast
from masks import latent_mask, random_mask, training_hole
from pictures import tensor_to_image
from sd.diffusion import Diffusion, ddim
from sd.inpainting import FOLDER, UNetInPicture, widen
from sd.vae import VAE
from sd.weights import load_unet, load_vae
from seeds import numpy_rng, torch_rng
from tiny.common import (
    HELD_OUT,
    add_machine_flags,
    learning_rate,
    load_state,
    note,
    prepare,
    save_component,
    save_state,
    stream,
    update_average,
)
from tiny.muon import Muon
from tiny.procedural import draw_pair
from tiny.train_unet import FIRST, POOL, Denoiser, Pool, Words, component_config, min_snr

DAMAGED, WHOLE = 0.5, 0.1  # shares: of damaged pictures that stay so, of holes that are the whole picture


def draw_holes(seeds: range, size: int = 128) -> tuple[Tensor, list[tuple[str, ...]], Tensor]:
    """Images (B, 3, size, size) in [-1, 1] of `seeds`, the words for what is in their holes, and these."""
    images, words, holes = zip(*(draw_hole(seed, size) for seed in seeds), strict=True)
    image = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return image, list(words), torch.from_numpy(np.stack(holes)).float()[:, None]


def draw_hole(seed: int, size: int) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """One picture (S, S, 3) uint8, its words, and its hole (S, S) in {0, 1}."""
    clean, sample = draw_pair(seed, size)
    rng = numpy_rng("hole", seed)
    mask = sample.mask.astype(np.uint8)
    if not mask.any() or rng.random() >= DAMAGED:
        product, backdrop = sample.words[:4], sample.words[8:] if mask.any() else sample.words[5:]
        mask = mask if mask.any() and rng.random() < 0.5 else random_mask(rng, size)
        image, words = clean, (*product, "good", *backdrop)
    else:
        image, words = sample.image, sample.words
    hole = np.ones_like(mask) if rng.random() < WHOLE else training_hole(rng, mask)
    return image, words, hole


class HolePool(Pool):
    """A pool that keeps, beside each picture, its hole's cells and the latents of what is around it."""

    def __init__(self, vae: VAE, words: Words) -> None:
        super().__init__(vae, words)
        self.cells, self.z_masked = torch.zeros(POOL, 1, 16, 16), torch.zeros(POOL, 4, 16, 16)

    @torch.no_grad()
    def add(self, image: Tensor, words: list[tuple[str, ...]], hole: Tensor) -> None:
        where = torch.arange(self.made, self.made + len(image)) % POOL
        super().add(image, words)
        mean, std = self.vae.posterior((image * (1 - hole)).to(next(self.vae.parameters()).device))
        self.z_masked[where] = (mean + std * torch.randn_like(std)).float().cpu()
        self.cells[where] = latent_mask(hole)

    def batch(self, size: int, step: int) -> tuple[Tensor, ...]:
        """As Pool's, then cells and z_masked."""
        # The pictures that Pool draws.
        which = torch.randint(0, min(self.made, POOL), (size,), generator=torch_rng("unet", step))
        return *super().batch(size, step), self.cells[which], self.z_masked[which]


def predict(model: Denoiser, z_t: Tensor, t: Tensor, ids: Tensor, cells: Tensor, z_masked: Tensor) -> Tensor:
    """eps_hat of a batch."""
    return UNetInPicture(model.unet, cells, z_masked)(z_t, t, model.words(ids))


def start_from(folder: Path) -> Denoiser:
    """The base's UNet, widened, and its text encoder, frozen."""
    model = Denoiser()
    model.unet = widen(load_unet(str(folder), device="cpu", dtype=torch.float32)).requires_grad_(True).train()
    model.words.clip = CLIPTextModel.from_pretrained(folder / "text_encoder", variant="fp16").float()
    model.words.requires_grad_(False)
    return model


@torch.no_grad()
def held_out_loss(model: Denoiser, pool: HolePool) -> float:
    """The loss on held-out pictures at fixed noise and timesteps, in the holes alone."""
    device = next(model.parameters()).device
    z_0, ids, eps, t, cells, z_masked = (x.to(device) for x in pool.batch(256, -1))
    z_t = Diffusion().add_noise(z_0, eps, t)
    parts = zip(*(x.split(64) for x in (z_t, t, ids, cells, z_masked)), strict=True)
    error = (torch.cat([predict(model, *part) for part in parts]) - eps).square().mean(dim=1, keepdim=True)
    return ((error * cells).sum() / cells.sum()).item()


@torch.no_grad()
def draw_sheet(model: Denoiser, vae: VAE, path: Path, guidance: float = 3.0, count: int = 24) -> None:
    """In rows of threes: held-out pictures without their holes, filled by their words, and as they were."""
    device = next(model.parameters()).device
    image, words, hole = draw_holes(range(HELD_OUT + 5000, HELD_OUT + 5000 + count))
    image, hole = image.to(device), hole.to(device)
    ids = torch.cat([model.words.ids(words), model.words.ids([()] * count)]).to(device)
    z_T, noise = torch.randn(2, count, 4, 16, 16, generator=torch_rng("sheet")).to(device)
    in_picture = UNetInPicture(model.unet, latent_mask(hole), vae.encode(image * (1 - hole), noise))
    context = model.words(ids)

    def eps(z_t: Tensor, t: int) -> Tensor:
        times = torch.full((2 * count,), t, device=device)
        cond, null = in_picture(torch.cat([z_t, z_t]), times, context).chunk(2)
        return null + guidance * (cond - null)

    *_, z = ddim(eps, z_T, steps=30)
    parts = zip(*(x.split(8) for x in (image * (1 - hole), vae.decode(z), image)), strict=True)
    rows = torch.cat([torch.cat([*row.unbind()], dim=2) for part in parts for row in part], dim=1)
    tensor_to_image(rows).save(path)


def main() -> None:
    """The command: train on from where it was, write weights and samples."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--fresh", type=int, default=8, help="new pictures a step")
    parser.add_argument("--lr", type=float, default=5e-4)
    add_machine_flags(parser)
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = load_vae(str(args.out), device=args.device, dtype=torch.float32)
    prepare(vae, args.device, args.precision)
    model = prepare(start_from(args.out), args.device, args.precision)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = Muon(model)
    state, diffusion = args.out / "inpaint.state.safetensors", Diffusion()
    start, began = load_state(state, model, average, optimizer), time.time()

    pool, test = HolePool(vae, model.words), HolePool(vae, model.words)
    test.add(*draw_holes(range(HELD_OUT + 2000, HELD_OUT + 2256)))
    first = max(0, start * args.fresh + FIRST - POOL)
    for seed in tqdm(range(first, start * args.fresh + FIRST, 32), "drawing", disable=None):
        pool.add(*draw_holes(range(seed, seed + 32)))
    pictures = stream(FIRST, args.fresh, start, args.steps, draw_holes)
    for step, drawn in enumerate(tqdm(pictures, initial=start, total=args.steps, disable=None), start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.lr)
        pool.add(*drawn)
        z_0, ids, eps, t, *picture = (x.to(args.device) for x in pool.batch(args.batch_size, step))
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            eps_hat = predict(model, diffusion.add_noise(z_0, eps, t), t, ids, *picture)
        loss = ((eps_hat.float() - eps).square().mean(dim=(1, 2, 3)) * min_snr(t)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        update_average(average, model, step, 0.9995)
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            numbers = {"held_out_loss": held_out_loss(average, test), "loss": loss.item()}
            note(args.out, FOLDER, step + 1, numbers | {"seconds": time.time() - began})
            save_state(state, step + 1, model, average, optimizer)
            save_component(args.out / FOLDER, average.unet, component_config(average.unet.config))
        if (step + 1) % 1000 == 0 or step + 1 == args.steps:
            draw_sheet(average, vae, args.out / "samples_inpaint.png")


if __name__ == "__main__":
    errors.run(main)
