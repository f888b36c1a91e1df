"""Networks that look at images: what FID measures in and what the judge starts from. Never one for another.

Each comes from torchvision (downloaded once, checked by the hash in its name), from the repository
(`tiny`), or from a file given by flag, which must fit tensor by tensor and whose hash goes into every report.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from config import flag
from errors import UserError
from files import sha256
from sd.hub import fetch_first

TINY = Path(__file__).parent / "tiny" / "features" / "features.fp16.safetensors"
SIZES = {"inception": 299, "resnet18": 224, "resnet50": 224, "tiny": 128}
FEATURES, JUDGES = ("inception", "tiny"), ("resnet18", "resnet50", "tiny")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class NetworkConfig:
    """The flags that choose networks."""

    features: str = flag("inception", "what FID is measured in; tiny is the embedded one, for the demo",
                         group="networks", choices=FEATURES)
    features_weights: str | None = flag(None, "file with its weights (default: torchvision's own)",
                                        group="networks")
    judge: str = flag("resnet18", "what the judge starts from; tiny is the embedded one, for the demo",
                      group="networks", choices=JUDGES)
    judge_weights: str | None = flag(None, "file with its weights (default: torchvision's own)",
                                     group="networks")


class WeightsMissing(UserError):
    """Weights that cannot be had here. The message says how to get them; `short` is what went wrong."""

    def __init__(self, short: str, remedy: str) -> None:
        super().__init__(f"{short}; {remedy}")
        self.short = short


@dataclass(frozen=True)
class Network:
    """trunk: images (B, 3, size, size) in [-1, 1] -> features (B, dim), on `device`, in eval mode."""

    name: str
    trunk: nn.Module
    size: int
    dim: int
    fid: str  # what a Frechet distance in its features is called
    about: str  # which weights these are, for the reports
    digest: str  # of the weights: features of other weights are never mixed up with these
    device: torch.device


class SmallNet(nn.Module):
    """The embedded feature network: five convolutions, then each channel's mean and maximum, standardised.

    Trained by tiny/train_features.py to name the product and the damage in procedural pictures.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64, 80),
                 heads: tuple[int, ...] = (13, 10)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (c_in, c_out) in enumerate(zip((3, *widths[:-1]), widths, strict=True)):
            layers += [nn.MaxPool2d(2)] * (i > 0)
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.standardise = nn.BatchNorm1d(2 * widths[-1], affine=False)  # KID's kernel is not free of scale
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], count) for count in heads)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 128, 128) in [-1, 1] -> (B, 160)."""
        h = self.layers(image)
        return self.standardise(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1))


class _Standardised(nn.Module):
    """[-1, 1] -> channels of the mean and deviation that `net` was trained with, given for [0, 1]."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.net((image / 2 + 0.5 - self.mean) / self.std)


def _build(name: str) -> tuple[nn.Module, Any]:
    """An untrained network and torchvision's entry for its published weights (None: it has none there)."""
    import torchvision.models as zoo  # slow to import

    if name == "inception":
        # Without transform_input, which maps ImageNet-normalised input back to [-1, 1]: ours is that already.
        net = zoo.inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
        return net, zoo.Inception_V3_Weights.IMAGENET1K_V1
    if name == "tiny":
        return SmallNet(), None
    entry = zoo.get_model_weights(name).DEFAULT
    return zoo.get_model(name, weights=None), entry


def load_network(name: str, weights: str | None, device: torch.device) -> Network:
    """The network `name` with the weights of file `weights`, or by default its published ones.

    Raises WeightsMissing where these cannot be fetched, UserError for a file that does not fit.
    """
    net, entry = _build(name)
    expected = "" if entry is None else re.search(r"-([0-9a-f]{8})\.pth$", entry.url).group(1)
    path = Path(weights) if weights else TINY if entry is None else _fetch(name, entry.url)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the weights of {name} as .pth or .safetensors")
    digest = sha256(path)
    if not weights and not digest.startswith(expected):
        raise UserError(f"{path}: damaged (its SHA-256 should begin with {expected}); delete it, run again")
    _fill(net, path)
    dim = 2 * 80 if name == "tiny" else net.fc.in_features
    if name != "tiny":
        net.fc = nn.Identity()
    trunk = _Standardised(net, IMAGENET_MEAN, IMAGENET_STD) if name.startswith("resnet") else net
    published = expected and digest.startswith(expected)
    # Never plain FID: that of the literature is measured in TensorFlow's Inception, whose features differ.
    fid = "FID-torchvision" if published else "FID-own-weights" if weights else f"FID-{name}"
    source = ("trained on ImageNet by torchvision" if published else f"the weights in {path}" if weights
              else "trained on procedural pictures only")
    about = f"{name}, {source}, SHA-256 {digest[:8]}.."
    trunk = trunk.eval().requires_grad_(False).to(device)
    return Network(name, trunk, SIZES[name], dim, fid, about, digest[:16], device)


def pixels(device: torch.device, size: int = 32) -> Network:
    """The picture itself, small: for nearness that no network has a say in."""
    return Network("pixels", nn.Flatten(), size, 3 * size ** 2, "FID-pixels", "the picture itself",
                   str(size), device)


class _Embedding(nn.Module):
    """CLIP's image embedding, of length 1."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return F.normalize(self.net(pixel_values=image).image_embeds, dim=1)


def load_clip(name: str, device: torch.device) -> Network:
    """CLIP's image side, a hub id or a folder. Raises WeightsMissing where it cannot be had."""
    from transformers import CLIPVisionModelWithProjection  # slow to import

    try:
        if not Path(name).is_dir():  # without a network this fails at once, transformers after a minute
            fetch_first(name, "main", ["config.json"])
        net = CLIPVisionModelWithProjection.from_pretrained(name, use_safetensors=True)
    except Exception as error:  # OSError, and whatever the hub's client raises
        reason = " ".join(str(error).split())[:200]
        raise WeightsMissing(f"--clip {name}: cannot be loaded ({reason})",
                             "give a hub id or a folder with config.json and weights") from error
    digest = hashlib.sha256()
    for tensor in net.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    trunk = _Standardised(_Embedding(net), CLIP_MEAN, CLIP_STD).eval().requires_grad_(False).to(device)
    return Network("clip", trunk, net.config.image_size, net.config.projection_dim, "FID-CLIP",
                   f"{name}, SHA-256 {digest.hexdigest()[:8]}..", digest.hexdigest()[:16], device)


def _fetch(name: str, url: str) -> Path:
    """torchvision's own file in torch's cache, downloaded if it is not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
        except Exception as error:  # urllib's, the system's, http.client's ...
            cause = getattr(error, "reason", None) or error
            reason = str(getattr(cause, "strerror", None) or cause).strip() or type(error).__name__
            raise WeightsMissing(f"{name}'s weights could not be fetched ({reason})",
                                 f"fetch {url} elsewhere and put it into {path.parent}, or give it by flag"
                                 ) from error
        print(f"{name}: fetched {url}", file=sys.stderr, flush=True)
    return path


def _fill(net: nn.Module, path: Path) -> None:
    """Load a file strictly: every tensor's name and shape must be the network's. Raises UserError."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict({key: tensor.float() if tensor.is_floating_point() else tensor
                             for key, tensor in state.items()})
    except Exception as error:  # torch.load alone raises half a dozen kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not the weights of {type(net).__name__} ({reason})") from error
