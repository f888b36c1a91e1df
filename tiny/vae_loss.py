"""What the VAE's training compares pictures by: features of a network trained on ImageNet, and a critic."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from evaluation.networks import LITE, load_network

STAGES = (0, 2, 4, 10, 15)  # blocks whose outputs are compared: 1/2, 1/4, 1/8, 1/16, 1/32 of the side

# RGB -> the two chroma channels of YCbCr (ITU-R BT.601), times 6: next to a critic, less lets colours fade
CHROMA = 3 * torch.tensor([[-0.338, -0.662, 1.0], [1.0, -0.838, -0.162]])


def pixel_error(back: Tensor, image: Tensor) -> Tensor:
    """Mean absolute error of RGB and chroma. With RGB alone, lightness is learnt and colour is not."""
    error = back - image
    return torch.cat([error, torch.einsum("ij,bjhw->bihw", CHROMA.to(image.device), error)], 1).abs().mean()


class StageFeatures(nn.Module):
    """The stem and some blocks of EfficientNet-Lite0 (requirements-offline.txt), frozen.

    image (B, 3, H, W) in [-1, 1], H and W multiples of 32 -> a list of (B, C, h, w), a vector of unit length
    at each position.
    """

    def __init__(self) -> None:
        """Raises UserError where the package of its weights is not installed."""
        super().__init__()
        net: Any = load_network(LITE, None, torch.device("cpu")).trunk.net
        self.stem = nn.Sequential(fuse_conv_bn_eval(net._conv_stem, net._bn0), net._swish)
        self.blocks = net._blocks[:max(STAGES) + 1]
        parts = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        for block in self.blocks:  # batch normalisation goes into the convolution before it
            for conv, norm in parts:
                if hasattr(block, conv):
                    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        found = [x]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in STAGES:
                found.append(x)
        return [F.normalize(x, dim=1, eps=1e-3) for x in found]

    def distance(self, image: Tensor, target: list[Tensor]) -> Tensor:
        """(B,) mean over stages of the mean squared distance to the features `target`: LPIPS (Zhang et al.
        2018, arXiv 1801.03924) without learnt weights."""
        squares = [(x - y).square().sum(1).mean((1, 2)) for x, y in zip(self(image), target, strict=True)]
        return torch.stack(squares).mean(0)


@torch.no_grad()
def compare(features: StageFeatures, image: Tensor, back: Tensor) -> tuple[float, float]:
    """Mean PSNR in dB and mean perceptual distance of `back` to `image`, (B, 3, H, W) in [-1, 1]."""
    psnr = -10 * torch.log10((((image - back) / 2) ** 2).mean(dim=(1, 2, 3)))
    distance = torch.cat([features.distance(y, features(x))
                          for x, y in zip(image.split(16), back.split(16), strict=True)])
    return psnr.mean().item(), distance.mean().item()


class Critic(nn.Sequential):
    """A patch discriminator (Isola et al. 2017, arXiv 1611.07004): (B, 3, H, W) -> logits (B, 1, h, w).

    A logit sees 34 pixels across.
    """

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in ((width, 2 * width, 2), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(c_in, c_out, 4, stride, 1), nn.GroupNorm(8, c_out), nn.LeakyReLU(0.2)]
        super().__init__(*layers, nn.Conv2d(4 * width, 1, 4, 1, 1))


def hinge(real: Tensor, drawn: Tensor) -> Tensor:
    """The critic's loss on its logits for real and for drawn pictures."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + drawn).mean())


def balance(last: Tensor, image: Tensor, near: Tensor, fooled: Tensor) -> Tensor:
    """The weight of the critic in the loss: the ratio of two gradients' norms at `last`, the decoder's last
    weights (Esser et al. 2021, arXiv 2012.09841, equation 7), at most 1e4.

    image: the decoder's output; near, fooled: the gradients of the reconstruction loss and of the critic with
    respect to it.
    """
    to_near, to_fooled = (torch.autograd.grad(image, last, gradient, retain_graph=True)[0].norm()
                          for gradient in (near, fooled))
    return (to_near / (to_fooled + 1e-4)).clamp(max=1e4)
