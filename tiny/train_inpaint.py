"""Train the embedded base's inpainting UNet on procedural images: `python -m tiny.train_inpaint`.

It starts as the base's own UNet (tiny/train_unet.py) with five more input channels of zero weights, and fills
holes by words: where the damage is with its words, and in the undamaged picture, the same hole among others,
with "good". The text encoder stays as it is. Writes unet_inpaint/ beside unet/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import errors
from machine import DTYPES, autocast
from masks import latent_mask, random_mask, training_hole
from pictures import tensor_to_image
from sd.diffusion import Diffusion, ddim
from sd.inpainting import FOLDER, UNetInPicture, widen
from sd.vae import VAE
from sd.weights import load_vae
from seeds import numpy_rng, torch_rng
from tiny.common import HELD_OUT, prepare, save_component
from tiny.procedural import draw_pair
from tiny.run import Run, training_flags
from tiny.train_unet import (
    POOL,
    Denoiser,
    Pool,
    Words,
    component_config,
    in_cells,
    min_snr,
    pool_flags,
)

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
    """A pool whose cells are those of holes, and that keeps the latents of what is around them."""

    def __init__(self, vae: VAE, words: Words, precision: str = "fp32") -> None:
        super().__init__(vae, words, precision)
        self.z_masked = torch.zeros(POOL, 4, 16, 16)

    @torch.no_grad()
    def add(self, image: Tensor, words: list[tuple[str, ...]], hole: Tensor) -> None:
        where = torch.arange(self.made, self.made + len(image)) % POOL
        super().add(image, words, hole)
        mean, std = self.posterior(image * (1 - hole))
        self.z_masked[where] = (mean + std * torch.randn_like(std)).float().cpu()

    def batch(self, size: int, step: int) -> tuple[Tensor, ...]:
        """As Pool's, then z_masked."""
        # The pictures that Pool draws.
        which = torch.randint(0, min(self.made, POOL), (size,), generator=torch_rng("unet", step))
        return *super().batch(size, step), self.z_masked[which]


def predict(model: Denoiser, z_t: Tensor, t: Tensor, ids: Tensor, cells: Tensor, z_masked: Tensor) -> Tensor:
    """eps_hat of a batch."""
    return UNetInPicture(model.unet, cells, z_masked)(z_t, t, model.words(ids))


def weighed(error: Tensor, cells: Tensor) -> Tensor:
    """The losses (B,) of squared errors (B, 4, h, w): half of each is the mean over the hole alone."""
    return 0.5 * error.mean(dim=(1, 2, 3)) + 0.5 * in_cells(error, cells)


def start_from(folder: Path) -> Denoiser:
    """The base's UNet, widened, and its text encoder, frozen."""
    model = Denoiser()
    model.read(folder)
    model.unet = widen(model.unet).requires_grad_(True).train()
    model.words.requires_grad_(False)
    return model


@torch.no_grad()
def held_out_loss(model: Denoiser, pool: HolePool) -> float:
    """The loss on held-out pictures at fixed noise and timesteps, in the holes alone."""
    device = next(model.parameters()).device
    z_0, eps, t, ids, cells, z_masked = (x.to(device) for x in pool.batch(256, -1))
    z_t = Diffusion().add_noise(z_0, eps, t)
    parts = zip(*(x.split(64) for x in (z_t, t, ids, cells, z_masked)), strict=True)
    error = (torch.cat([predict(model, *part) for part in parts]) - eps).square()
    return in_cells(error, cells).mean().item()


@torch.no_grad()
def draw_sheet(model: Denoiser, vae: VAE, path: Path, count: int, guidance: float = 3.0) -> None:
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
    parser = training_flags(__doc__, steps=1500, lr=5e-4)
    pool_flags(parser)
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = load_vae(str(args.out), device=args.device, dtype=torch.float32)
    prepare(vae, args.device, args.precision)
    model = prepare(start_from(args.out), args.device, args.precision)
    run, diffusion = Run(args, FOLDER, model, 0.9995), Diffusion()

    pool, test = HolePool(vae, model.words, args.precision), HolePool(vae, model.words)
    test.add(*draw_holes(range(HELD_OUT + 2000, HELD_OUT + 2000 + args.held_out)))
    next_seed = args.first + run.start * args.fresh
    for seed in tqdm(range(max(0, next_seed - POOL), next_seed, 32), "drawing", disable=None):
        pool.add(*draw_holes(range(seed, seed + 32)))
    for step, drawn in run.steps(args.first, draw_holes):
        pool.add(*drawn)
        z_0, eps, t, ids, *picture = (x.to(args.device) for x in pool.batch(args.batch_size, step))
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            eps_hat = predict(model, diffusion.add_noise(z_0, eps, t), t, ids, *picture)
        loss = (weighed((eps_hat.float() - eps).square(), picture[0]) * min_snr(t)).mean()
        run.update(step, loss)
        if run.due(step, 500):
            run.save(step, {"held_out_loss": held_out_loss(run.average, test), "loss": loss.item()})
            save_component(args.out / FOLDER, run.average.unet, component_config(run.average.unet.config))
        if run.due(step, 1000):
            draw_sheet(run.average, vae, args.out / "samples_inpaint.png", min(24, args.held_out))


if __name__ == "__main__":
    errors.run(main)
