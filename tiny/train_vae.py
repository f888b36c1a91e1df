"""Train the embedded base's VAE from scratch on procedural images: `python -m tiny.train_vae`.

Pixels, not perception: L1 at four scales plus MSE, and a weak KL term that keeps the latents compact. Left
alone, such a network learns luminance first and stays grey for long; two things bring the colours early
(measured in tiny/README.md): chroma counts as much as RGB, and at the start blocks pass their input through.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import errors
from machine import DTYPES, autocast
from sd.layers import Attention, Downsample, ResnetBlock, Upsample
from sd.vae import VAE, VAEConfig
from seeds import torch_rng
from tiny.common import HELD_OUT, draw_images, prepare, save_component
from tiny.run import Run, training_flags

CONFIG = VAEConfig(block_out_channels=(16, 32, 96, 128), layers_per_block=1, norm_num_groups=8)
KL_WEIGHT = 1e-5


# RGB -> the two chroma channels of YCbCr (ITU-R BT.601), doubled
CHROMA = torch.tensor([[-0.338, -0.662, 1.0], [1.0, -0.838, -0.162]])


@torch.no_grad()
def pass_through(vae: VAE) -> None:
    """Start with blocks that hand their input on: residual branches at zero, the other convolutions near
    identity, and little posterior noise, or nothing is learnt for long."""
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            if isinstance(module.conv_shortcut, nn.Conv2d):
                weight = module.conv_shortcut.weight
                weight.copy_(weight / 2 + nn.init.dirac_(torch.empty_like(weight)))
        elif isinstance(module, (Downsample, Upsample)):
            weight = module.conv.weight
            identity = nn.init.dirac_(torch.empty_like(weight))
            if isinstance(module, Downsample):  # the mean of 2 x 2 pixels
                identity[:, :, :2, :2] = identity[:, :, 1:2, 1:2] / 4
            weight.copy_(weight / 2 + identity)
        elif isinstance(module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
    vae.quant_conv.bias[vae.config.latent_channels:] -= 6


def loss_fn(vae: VAE, image: Tensor, noise: Tensor) -> Tensor:
    """Reconstruction at scales 1, 1/2, 1/4 and 1/8 plus the KL divergence to the unit Gaussian."""
    mean, std = (m / CONFIG.scaling_factor for m in vae.posterior(image))
    difference = vae.decode((mean + std * noise) * CONFIG.scaling_factor).float() - image
    chroma = torch.einsum("ij,bjhw->bihw", CHROMA.to(image.device), difference)
    difference = torch.cat([difference, chroma], dim=1)
    loss = sum(F.avg_pool2d(difference, s).abs().mean() for s in (1, 2, 4, 8))
    mean, std = mean.float(), std.float()
    kl = 0.5 * (mean ** 2 + std ** 2 - 1 - 2 * std.log()).sum(dim=(1, 2, 3)).mean()
    return loss + 2 * (difference ** 2).mean() + KL_WEIGHT * kl * 64 ** 2 / image[0, 0].numel()


def crops(image: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Two random crops of each image, with random flips: a quarter of the work of the whole image."""
    out = []
    for picture in image:
        for _ in range(2):
            y, x = torch.randint(0, image.shape[2] - size + 1, (2,), generator=rng).tolist()
            out.append(picture[:, y:y + size, x:x + size])
    return torch.stack(out)


@torch.no_grad()
def evaluate(vae: VAE, image: Tensor) -> tuple[float, float]:
    """(mean PSNR in dB, mean chroma error in Lab) of images (B, 3, H, W) after the VAE's round trip."""
    back = torch.cat([vae.decode(vae.posterior(x)[0]) for x in image.split(16)]).clamp(-1, 1)
    psnr = -10 * torch.log10((((image - back) / 2) ** 2).mean(dim=(1, 2, 3)))
    chroma = (lab(image)[:, 1:] - lab(back)[:, 1:]).square().sum(1).sqrt()
    return psnr.mean().item(), chroma.mean().item()


def lab(image: Tensor) -> Tensor:
    """sRGB in [-1, 1], (B, 3, H, W), to CIE L*a*b* (D65; IEC 61966-2-1 and CIE 15)."""
    rgb = ((image + 1) / 2).clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                           [0.0193339, 0.1191920, 0.9503041]])
    white = torch.tensor([0.95047, 1.0, 1.08883])[:, None, None]
    xyz = torch.einsum("ij,bjhw->bihw", matrix, linear) / white
    f = torch.where(xyz > 0.008856, xyz.clamp(min=1e-9) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def held_out(vae: VAE, count: int) -> dict[str, float]:
    """The numbers of the README: procedural images and demo bottles that training never saw."""
    from demo import CLASSES, draw_bottle
    image, *_ = draw_images(range(HELD_OUT, HELD_OUT + count))
    bottles = np.stack([draw_bottle(c, HELD_OUT + i, 128)[0] for c in CLASSES for i in range(count // 4)])
    bottles = torch.from_numpy(bottles).permute(0, 3, 1, 2).float() / 127.5 - 1
    (psnr, chroma), (bottle_psnr, bottle_chroma) = evaluate(vae, image), evaluate(vae, bottles)
    return {"psnr_procedural": psnr, "chroma_procedural": chroma, "psnr_demo": bottle_psnr,
            "chroma_demo": bottle_chroma}


@torch.no_grad()
def standardised(vae: VAE, count: int) -> VAE:
    """The same autoencoder with latent channels of mean 0 and variance 1, by 1 x 1 convolutions alone: left
    as trained, lightness has four times the spread of colour, which diffusion would then settle last."""
    vae = copy.deepcopy(vae)
    image, *_ = draw_images(range(HELD_OUT + 1000, HELD_OUT + 1000 + count))
    mean = torch.cat([vae.posterior(x)[0] for x in image.split(16)]) / vae.config.scaling_factor
    std, mean = torch.std_mean(mean, dim=(0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:4] -= mean
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] /= std
    quant.bias[4:] -= 2 * std.log()  # the log-variances
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[:, None, None]
    return vae


def export(vae: VAE, folder: Path, count: int) -> None:
    """Write tiny/vae in diffusers' layout; `count` pictures standardise its latents."""
    config = {"_class_name": "AutoencoderKL", "act_fn": "silu", **vars(CONFIG),
              "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
              "sample_size": 128, "scaling_factor": 1.0, "force_upcast": False}
    save_component(folder, standardised(vae, count), config)


def main() -> None:
    """The command: train on from where it was, write weights and what they reach."""
    parser = training_flags(__doc__, steps=1300, lr=2e-3)
    parser.add_argument("--decoder-only", action="store_true",
                        help="whole images, encoder frozen: for a UNet that is trained already")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = prepare(VAE(CONFIG), args.device, args.precision)
    pass_through(vae)
    run = Run(args, "vae", vae)
    if args.decoder_only:
        vae.load_state_dict(run.average.state_dict())  # the latents are those of the exported average
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)

    for step, (image, *_) in run.steps(0):
        if not args.decoder_only and step < 0.9 * args.steps:  # the last tenth: whole images
            image = crops(image, 64, torch_rng("crop", step))
        noise = torch.randn(len(image), 4, image.shape[2] // 8, image.shape[3] // 8,
                            generator=torch_rng("vae", step))
        image = image.to(args.device, memory_format=torch.channels_last)
        with autocast(torch.device(args.device), DTYPES[args.precision]):
            loss = loss_fn(vae, image, noise.to(args.device))
        run.update(step, loss)
        if run.due(step, 250):
            run.save(step, held_out(run.average, args.held_out // 4) | {"loss": loss.item()})
            export(run.average, args.out / "vae", args.held_out)


if __name__ == "__main__":
    errors.run(main)
