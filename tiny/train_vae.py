"""Train the embedded base's VAE: `python -m tiny.train_vae`.

From the present weights or from scratch, on procedural pictures and photographic textures (tiny/photos.py).
The loss is that of Rombach et al. 2022: L1, a distance in the features of a network trained on ImageNet, a
weak KL term that keeps the latents compact, and late a patch discriminator, the critic.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from runtime import errors
from runtime.device import DTYPES, autocast
from runtime.errors import UserError
from runtime.seeds import torch_rng
from sd.layers import Attention, Downsample, ResnetBlock, Upsample
from sd.pretrained.weights import load_vae
from sd.vae import VAE, VAEConfig
from tiny.bottles import CLASSES, draw_bottle
from tiny.common import HELD_OUT, TINY, draw_images, prepare, save_component, save_sheet
from tiny.photos import PictureFile
from tiny.run import Run, training_flags
from tiny.vae_loss import Critic, StageFeatures, balance, compare, hinge, pixel_error

CONFIG = VAEConfig(block_out_channels=(32, 64, 96, 128), layers_per_block=1, norm_num_groups=8,
                   scaling_factor=1.0)
KL_WEIGHT = 2.5e-6


@torch.no_grad()
def pass_through(vae: VAE) -> None:
    """Set residual branches to zero, other convolutions close to the identity, and the posterior's noise low.
    Without this, nothing is learnt for long."""
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
            nn.init.zeros_(module.to_out.get_parameter("0.weight"))
    assert vae.quant_conv.bias is not None
    vae.quant_conv.bias[vae.config.latent_channels:] -= 6  # of the log-variance


@torch.no_grad()
def widened(vae: VAE, wide: VAE) -> VAE:
    """`wide` with the weights of `vae`, where each of the first three widths is the same or twice as large.
    It computes the same function.

    A doubled channel becomes two equal ones side by side, so groups are normalised as before. What the two
    give to the next layer is split at random, so they learn different things (Net2Net, Chen et al. 2016,
    arXiv 1511.05641).
    """
    rng, known = torch_rng("widen"), vae.state_dict()
    for name, tensor in wide.state_dict().items():
        old = known[name]
        for axis in range(tensor.ndim):
            if tensor.shape[axis] != old.shape[axis]:
                before, old = old.shape[axis], old.repeat_interleave(2, axis)
                if axis == 1:  # inputs
                    half = old.unflatten(1, (before, 2)) / 2
                    split = half[:, :, :1].abs() * torch.randn(half[:, :, :1].shape, generator=rng)
                    old = (half + torch.cat([split, -split], 2)).flatten(1, 2)
        tensor.copy_(old)
    return wide


def load_start(start: str, widths: tuple[int, ...]) -> VAE:
    """The VAE of the base folder `start`, with `widths`; or, where `start` is "scratch", a new one.

    Raises UserError for widths that the weights of `start` do not fit.
    """
    vae = VAE(dataclasses.replace(CONFIG, block_out_channels=widths))
    if start == "scratch":
        pass_through(vae)
        return vae
    found = load_vae(start, device="cpu", dtype=torch.float32)
    known = found.config.block_out_channels
    fits = [now in (old, 2 * old) for now, old in zip(widths, known, strict=True)]
    alike = vae.state_dict().keys() == found.state_dict().keys()  # else a shortcut comes or goes
    if not all(fits) or widths[3] != known[3] or not alike:
        raise UserError(f"--widths: {start} has {' '.join(map(str, known))}; the first three may be doubled, "
                        "other widths need --start scratch")
    return widened(found, vae)


class Step:
    """One training step of the VAE, and of its critic from the step --critic-from on."""

    def __init__(self, args: argparse.Namespace, features: StageFeatures, critic: Critic) -> None:
        self.args, self.features, self.critic = args, features, critic

    def __call__(self, run: Run[VAE], step: int, image: Tensor) -> dict[str, float]:
        """Update the run's model on the images (B, 3, H, W) in [-1, 1]; returns the parts of the loss."""
        vae, shape = run.model, (len(image), 4, image.shape[2] // 8, image.shape[3] // 8)
        noise = torch.randn(shape, generator=torch_rng("vae", step)).to(image.device)
        with torch.no_grad():
            target = self.features(image)
        with autocast(image.device, DTYPES[self.args.precision]):
            mean, std = vae.posterior(image)
            back = vae.decode(mean + std * noise).float()
        mean, std = mean.float(), std.float()
        kl = 0.5 * (mean ** 2 + std ** 2 - 1 - 2 * std.log()).sum(dim=(1, 2, 3)).mean()
        # Gradients are taken with respect to the picture first: the decoder's backward pass then runs once.
        drawn = back.detach().requires_grad_()
        error, distance = pixel_error(drawn, image), self.features.distance(drawn, target).mean()
        gradient, = torch.autograd.grad(self.args.pixels * error + distance, drawn)
        parts = {"l1": error.item(), "perceptual": distance.item(), "kl": kl.item()}
        if step >= self.args.critic_from:
            logits = self.critic(drawn)
            fooled, = torch.autograd.grad(-logits.mean(), drawn, retain_graph=True)
            weight = balance(vae.decoder.conv_out.weight, back, gradient, fooled)
            ramp = min(1.0, (step + 1 - self.args.critic_from) / 100)  # its first judgements are worth little
            gradient = gradient + self.args.critic * ramp * weight * fooled
            real = self.critic(image)
            run.update_critic(hinge(real, logits))
            parts |= {"critic_real": real.mean().item(), "critic_drawn": logits.mean().item(),
                      "critic_weight": weight.item()}
        run.update(step, (back * gradient).sum() + KL_WEIGHT * kl)
        return parts


@torch.no_grad()
def round_trip(vae: VAE, image: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] after encoding and decoding."""
    return torch.cat([vae.decode(vae.posterior(x)[0]) for x in image.split(16)]).clamp(-1, 1)


def held_out(vae: VAE, features: StageFeatures, count: int, sheet: Path) -> dict[str, float]:
    """PSNR and perceptual distance of held-out procedural pictures and of demo bottles. Writes some of both,
    before and after, to `sheet`."""
    procedural, *_ = draw_images(range(HELD_OUT, HELD_OUT + count))
    drawn = np.stack([draw_bottle(c, HELD_OUT + i, 128)[0] for c in CLASSES for i in range(count // 4)])
    bottles = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 127.5 - 1
    numbers, rows = {}, []
    for name, image in (("procedural", procedural), ("demo", bottles)):
        back = round_trip(vae, image)
        numbers[f"psnr_{name}"], numbers[f"perceptual_{name}"] = compare(features, image, back)
        rows.append((image[:16], back[:16]))
    save_sheet(sheet, *map(torch.cat, zip(*rows, strict=True)))
    return numbers


@torch.no_grad()
def standardised(vae: VAE, count: int) -> VAE:
    """The same autoencoder with latent channels of mean 0 and variance 1; only 1 x 1 convolutions change.

    As trained, lightness has four times the spread of colour, and diffusion would learn colour last.
    """
    vae = copy.deepcopy(vae)
    image, *_ = draw_images(range(HELD_OUT + 1000, HELD_OUT + 1000 + count))
    std, mean = torch.std_mean(torch.cat([vae.posterior(x)[0] for x in image.split(16)]), dim=(0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    assert quant.bias is not None and post.bias is not None
    quant.bias[:4] -= mean
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] /= std
    quant.bias[4:] -= 2 * std.log()  # the log-variances
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[:, None, None]
    return vae


def export(vae: VAE, folder: Path) -> None:
    """Write the VAE in diffusers' layout."""
    config = {"_class_name": "AutoencoderKL", "act_fn": "silu", **vars(vae.config),
              "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
              "sample_size": 128, "force_upcast": False}
    save_component(folder, vae, config)


def main() -> None:
    """The command: train or resume; write weights, their numbers and pictures before and after."""
    parser = training_flags(__doc__, steps=3000, lr=1e-3)
    parser.add_argument("--start", default=str(TINY), help='base whose VAE to start from, or "scratch"')
    parser.add_argument("--widths", type=int, nargs=4, default=list(CONFIG.block_out_channels))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=12_288, help="drawn once, kept in a file under --out")
    parser.add_argument("--no-photos", action="store_true", help="train on procedural pictures alone")
    parser.add_argument("--freeze-encoder", action="store_true",
                        help="train the decoder alone: the latents stay, so trained UNets stay valid")
    parser.add_argument("--pixels", type=float, default=1.0, help="weight of L1; the perceptual one is 1")
    parser.add_argument("--critic", type=float, default=0.1, help="weight of the critic, after balancing")
    parser.add_argument("--critic-from", type=int, default=1000, help="the first step with the critic")
    args = parser.parse_args()

    torch.manual_seed(0)
    vae = prepare(load_start(args.start, tuple(args.widths)).train(), args.device, args.precision)
    critic = Critic().to(args.device).to(memory_format=torch.channels_last)
    features = StageFeatures().to(args.device)
    vae.requires_grad_(True)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(not args.freeze_encoder)
    run, update = Run(args, "vae", vae, critic=critic), Step(args, features, critic)
    pictures = PictureFile(args.out, args.pictures, not args.no_photos)
    for step, image in run.steps(pictures.batches(args.batch_size, run.start, args.steps)):
        parts = update(run, step, image.to(args.device, memory_format=torch.channels_last))
        if run.due(step):
            final = run.average if args.freeze_encoder else standardised(run.average, args.held_out)
            run.save(step, held_out(final, features, args.held_out // 4, args.out / "vae.png") | parts)
            export(final, args.out / "vae")


if __name__ == "__main__":
    errors.run(main)
