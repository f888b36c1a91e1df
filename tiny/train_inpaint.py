"""Train the embedded base's inpainting UNet on procedural images: `python -m tiny.train_inpaint`.

It starts from the UNet under --out (tiny/train_unet.py) with five more input channels of zero weights, or
from the inpainting UNet of another base (--start). It learns to fill a hole from words: those of the damage
where the hole shows one, "good" where it does not. The text encoder is frozen. Writes unet_inpaint/ beside
unet/.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset.masks import latent_mask, random_mask, training_hole
from runtime import errors
from runtime.device import DTYPES, autocast
from runtime.seeds import numpy_rng, torch_rng
from sd.guidance import guided
from sd.inpainting import UNetInPicture, widen
from sd.pretrained.inpainting import FOLDER, load_inpainting_unet
from sd.pretrained.weights import load_vae
from sd.samplers import Diffusion, ddim
from sd.vae import VAE
from tiny.common import HELD_OUT, prepare, save_component, save_sheet
from tiny.latents import POOL, Pool, in_cells, min_snr, pool_flags
from tiny.procedural import draw_pair
from tiny.run import Run, stream, training_flags
from tiny.train_unet import Denoiser, component_config
from tiny.words import Words

DAMAGED, WHOLE = 0.5, 0.1  # share of damaged pictures whose damage is kept; of holes that are whole pictures


def draw_holes(seeds: range, size: int = 128) -> tuple[Tensor, list[tuple[str, ...]], Tensor]:
    """Images (B, 3, size, size) in [-1, 1] of `seeds`, the words for their holes, and the holes
    (B, 1, size, size) in {0, 1}."""
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
    """A pool whose cells are holes. It also keeps the latents of the masked images."""

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
        """The batch of Pool.batch, then z_masked."""
        # The same indices as in Pool.batch.
        which = torch.randint(0, min(self.made, POOL), (size,), generator=torch_rng("unet", step))
        return *super().batch(size, step), self.z_masked[which]


def predict(model: Denoiser, z_t: Tensor, t: Tensor, ids: Tensor, cells: Tensor, z_masked: Tensor) -> Tensor:
    """eps_hat of a batch."""
    return UNetInPicture(model.unet, cells, z_masked)(z_t, t, model.words(ids))


def weighed(error: Tensor, cells: Tensor) -> Tensor:
    """The losses (B,) of squared errors (B, 4, h, w): the mean of the mean over all cells and that over the
    hole."""
    return 0.5 * error.mean(dim=(1, 2, 3)) + 0.5 * in_cells(error, cells)


def start_from(folder: Path, start: Path | None) -> Denoiser:
    """The text encoder of the base `folder`, frozen, and its UNet, widened; or the inpainting UNet of the
    base `start`."""
    model = Denoiser()
    model.read(folder)
    if start:
        model.unet, _ = load_inpainting_unet(str(start), device="cpu", dtype=torch.float32,
                                             widened=False)
    else:
        model.unet = widen(model.unet)
    model.unet.requires_grad_(True).train()
    model.words.requires_grad_(False)
    return model


@torch.no_grad()
def held_out_loss(model: Denoiser, pool: HolePool, count: int) -> float:
    """The loss inside the holes of held-out pictures, at fixed noise and timesteps."""
    device = next(model.parameters()).device
    z_0, eps, t, ids, cells, z_masked = (x.to(device) for x in pool.batch(count, -1))
    z_t = Diffusion().add_noise(z_0, eps, t)
    parts = zip(*(x.split(64) for x in (z_t, t, ids, cells, z_masked)), strict=True)
    error = (torch.cat([predict(model, *part) for part in parts]) - eps).square()
    return in_cells(error, cells).mean().item()


@torch.no_grad()
def draw_sheet(model: Denoiser, vae: VAE, path: Path, count: int, guidance: float = 3.0) -> None:
    """Write rows of three: held-out pictures with a blank hole, with it filled from words, and whole."""
    device = next(model.parameters()).device
    image, words, hole = draw_holes(range(HELD_OUT + 5000, HELD_OUT + 5000 + count))
    image, hole = image.to(device), hole.to(device)
    z_T, noise = torch.randn(2, count, 4, 16, 16, generator=torch_rng("sheet")).to(device)
    in_picture = UNetInPicture(model.unet, latent_mask(hole), vae.encode(image * (1 - hole), noise))
    *_, z = ddim(guided(in_picture, model.words.contexts(words), guidance), z_T, steps=30)
    save_sheet(path, image * (1 - hole), vae.decode(z), image)


def main() -> None:
    """The command: train or resume; write weights and samples."""
    parser = training_flags(__doc__, steps=1500, lr=5e-4)
    pool_flags(parser)
    parser.add_argument("--start", type=Path, help="start from the inpainting UNet of this base")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = load_vae(str(args.out), device=args.device, dtype=torch.float32)
    prepare(vae, args.device, args.precision)
    model = prepare(start_from(args.out, args.start), args.device, args.precision)
    run, diffusion = Run(args, FOLDER, model, 0.9995), Diffusion()

    pool, test = HolePool(vae, model.words, args.precision), HolePool(vae, model.words)
    test.add(*draw_holes(range(HELD_OUT + 2000, HELD_OUT + 2000 + args.held_out)))
    pool.fill(draw_holes, args.first + run.start * args.fresh)
    for step, drawn in run.steps(stream(args.first, args.fresh, run.start, args.steps, draw_holes)):
        pool.add(*drawn)
        z_0, eps, t, ids, *picture = (x.to(args.device) for x in pool.batch(args.batch_size, step))
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            eps_hat = predict(model, diffusion.add_noise(z_0, eps, t), t, ids, *picture)
        loss = (weighed((eps_hat.float() - eps).square(), picture[0]) * min_snr(t)).mean()
        run.update(step, loss)
        if run.due(step):
            held_out = held_out_loss(run.average, test, args.held_out)
            run.save(step, {"held_out_loss": held_out, "loss": loss.item()})
            save_component(args.out / FOLDER, run.average.unet, component_config(run.average.unet.config))
        if run.due(step, 1000):
            draw_sheet(run.average, vae, args.out / "samples_inpaint.png", min(24, args.held_out // 4))


if __name__ == "__main__":
    errors.run(main)
