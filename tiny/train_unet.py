"""Train the embedded base's UNet and text encoder on procedural images: `python -m tiny.train_unet`.

Latent diffusion as in Rombach et al. 2022, in the latents of the VAE under --out. The words of a picture go
through a small CLIP text model that is trained too. A tenth of the pictures are trained without words, which
classifier-free guidance needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from runtime import errors
from runtime.device import DTYPES, autocast
from runtime.seeds import torch_rng
from sd.guidance import guided
from sd.layers import ResnetBlock, SpatialTransformer
from sd.pretrained.weights import load_unet, load_vae
from sd.samplers import Diffusion, ddim
from sd.unet import UNet, UNetConfig
from sd.vae import VAE
from tiny.common import HELD_OUT, draw_images, prepare, save_component, save_sheet
from tiny.latents import Pool, in_cells, min_snr, pool_flags
from tiny.run import Run, stream, training_flags
from tiny.words import TEXT, Words, write_tokenizer

CONFIG = UNetConfig(block_out_channels=(96, 128, 80, 48), layers_per_block=1, cross_attention_dim=128,
                    attention_head_dim=2, norm_num_groups=16)


@torch.no_grad()
def quiet_start(unet: UNet) -> None:
    """Set residual branches and the output to zero: a network that starts as the identity learns faster."""
    for module in unet.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, SpatialTransformer):
            nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(unet.conv_out.weight)


class Denoiser(nn.Module):
    """UNet and text encoder as one module, to train and to average."""

    def __init__(self) -> None:
        super().__init__()
        self.unet, self.words = UNet(CONFIG), Words()

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        return self.unet(z_t, t, self.words(ids))

    def read(self, folder: Path) -> None:
        """Load the weights of a base: `folder`/unet and `folder`/text_encoder."""
        self.unet.load_state_dict(load_unet(str(folder), device="cpu", dtype=torch.float32).state_dict())
        self.words.clip.load_state_dict(
            CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())


def component_config(config: UNetConfig) -> dict[str, Any]:
    """A UNet's config.json in diffusers' layout."""
    return {"_class_name": "UNet2DConditionModel", **vars(config), "sample_size": 16, "act_fn": "silu",
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "flip_sin_to_cos": True,
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "freq_shift": 0, "norm_eps": 1e-5}


def export(model: Denoiser, folder: Path) -> None:
    """Write unet/, text_encoder/ and tokenizer/ in diffusers' layout."""
    save_component(folder / "unet", model.unet, component_config(CONFIG))
    halves = {name: tensor.half() for name, tensor in model.words.clip.state_dict().items()}
    model.words.clip.save_pretrained(folder / "text_encoder", state_dict=halves)
    write_tokenizer(folder / "tokenizer", TEXT.max_position_embeddings)


@torch.no_grad()
def held_out_losses(model: Denoiser, pool: Pool, count: int) -> dict[str, float]:
    """The unweighted loss on held-out pictures at fixed noise and timesteps: in all and in damaged cells."""
    z_0, eps, t, ids, cells = pool.batch(count, -1)
    z_t = Diffusion().add_noise(z_0, eps, t)
    parts = zip(*(x.split(64) for x in (z_t, t, ids)), strict=True)
    error = (torch.cat([model(*part) for part in parts]) - eps).square()
    damaged = cells.amax(dim=(1, 2, 3)) > 0
    return {"held_out_loss": error.mean().item(),
            "held_out_damage": in_cells(error, cells)[damaged].mean().item()}


@torch.no_grad()
def draw_sheet(model: Denoiser, vae: VAE, path: Path, count: int, guidance: float = 3.0) -> None:
    """Write samples for the words of held-out pictures, above these pictures."""
    image, words, _ = draw_images(range(HELD_OUT + 5000, HELD_OUT + 5000 + count))
    z_T = torch.randn(count, 4, 16, 16, generator=torch_rng("sheet"))
    *_, z = ddim(guided(model.unet, model.words.contexts(words), guidance), z_T, steps=30)
    save_sheet(path, vae.decode(z), image)


def main() -> None:
    """The command: train or resume; write weights and samples."""
    parser = training_flags(__doc__, steps=2000, lr=1.5e-3)
    pool_flags(parser)
    parser.add_argument("--start", type=Path, help="start from the weights of this base")
    parser.add_argument("--start-step", type=int, default=0, help="steps that they were trained for")
    parser.add_argument("--frozen-text", action="store_true",
                        help="freeze the text encoder, which the inpainting UNet uses too")
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
    pool.fill(draw_images, args.first + run.start * args.fresh)
    for step, pictures in run.steps(stream(args.first, args.fresh, run.start, args.steps)):
        pool.add(*pictures)
        z_0, eps, t, ids, _ = (x.to(args.device) for x in pool.batch(args.batch_size, step))
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            eps_hat = model(diffusion.add_noise(z_0, eps, t), t, ids)
        loss = ((eps_hat.float() - eps).square().mean(dim=(1, 2, 3)) * min_snr(t)).mean()
        run.update(step, loss)
        if run.due(step):
            run.save(step, held_out_losses(run.average, test, args.held_out) | {"loss": loss.item()})
            export(run.average, args.out)
        if run.due(step, 1000):
            draw_sheet(run.average, vae, args.out / "samples.png", min(32, args.held_out // 4))


if __name__ == "__main__":
    errors.run(main)
