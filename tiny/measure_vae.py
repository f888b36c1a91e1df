"""What a VAE loses of photos: `python -m tiny.measure_vae FOLDER`.

The photos become squares of 128 px. Their four mirrored orientations are the reference. Their other four are
compared with it as they are, after the VAE's round trip, and shrunk to 96 and to 64 px and back, for scale.
Printed for each are FID, and PSNR and perceptual distance to the photos. FID is measured in the means of
EfficientNet-Lite0's last feature maps (requirements-offline.txt).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dataset.augmentation import square_box
from dataset.image_files import read_image
from dataset.layouts import find_products
from dataset.scan import scan_products
from evaluation.features import resize
from evaluation.metrics import frechet
from evaluation.networks import LITE, Network, load_network
from runtime import errors
from runtime.cli import flag, parse
from runtime.errors import UserError
from runtime.pictures import tensor_to_image
from sd.pretrained.weights import load_vae
from tiny.photos import turned
from tiny.train_vae import round_trip
from tiny.vae_loss import StageFeatures, compare

SIZE = 128
EXAMPLE = """example:
  python -m tiny.measure_vae DS-MVTec/bottle --base tiny/work --sheet vae_photos.png
"""


@dataclass
class Config:
    """The command line of tiny/measure_vae.py."""

    folder: str = flag(..., "photos, in any layout that --data reads; masks are left out", positional=True,
                       group="what")
    base: str = flag("tiny", "base whose VAE is measured", group="what")
    count: int = flag(27, "photos, evenly spread over the sorted names", group="what", minimum=2)
    sheet: str | None = flag(None, "write photos before and after, at 4 times their size", group="what")


def read_photos(folder: str, count: int) -> Tensor:
    """`count` photos of the dataset `folder`, as squares (count, 3, SIZE, SIZE) in [-1, 1].

    Raises UserError if there are fewer.
    """
    files = sorted({photo.image for photo in scan_products(find_products([folder])).photos})
    if len(files) < count:
        raise UserError(f"{folder}: {len(files)} photos, and --count is {count}")
    squares = []
    for index in range(count):
        image = read_image(files[index * len(files) // count])
        top, left, side = square_box(image.shape, None)
        squares.append(resize(image[top:top + side, left:left + side], SIZE))
    return torch.stack(squares)


def shrunk(image: Tensor, size: int) -> Tensor:
    """Images at `size` px and back at their own."""
    small = F.interpolate(image, size=size, mode="bicubic", antialias=True)
    return F.interpolate(small, size=image.shape[-1], mode="bicubic", antialias=True).clamp(-1, 1)


@torch.no_grad()
def vectors(network: Network, image: Tensor, mirrored: bool) -> np.ndarray:
    """Features of the images in four orientations, (4 B, 1280)."""
    parts = torch.cat([turned(image, turn + 4 * mirrored) for turn in range(4)]).split(16)
    large = (F.interpolate(part, size=network.size, mode="bicubic", antialias=True) for part in parts)
    found = torch.cat([network.trunk(part.clamp(-1, 1)) for part in large])
    return found.numpy()


def main() -> None:
    """The command."""
    config = parse(Config, __doc__, EXAMPLE, program="-m tiny.measure_vae")
    image = read_photos(config.folder, config.count)
    back = round_trip(load_vae(config.base, device="cpu", dtype=torch.float32), image)
    network, features = load_network(LITE, None, torch.device("cpu")), StageFeatures()
    reference = vectors(network, image, mirrored=True)
    print(f"{network.fid} at N = {len(reference)}, against the same photos mirrored")
    others = {"photos": image, "vae": back, "96 px": shrunk(image, 96), "64 px": shrunk(image, 64)}
    for name, other in others.items():
        row = {"what": name, "fid": round(frechet(vectors(network, other, mirrored=False), reference), 1)}
        if other is not image:
            psnr, distance = compare(features, image, other)
            row |= {"psnr": round(psnr, 2), "perceptual": round(distance, 4)}
        print(json.dumps(row), flush=True)
    if config.sheet:
        pairs = torch.cat([torch.cat([x, y], 2) for x, y in zip(image[:8], back[:8], strict=True)], 1)
        large = F.interpolate(pairs[None], scale_factor=4, mode="nearest")[0]
        tensor_to_image(large).save(config.sheet)


if __name__ == "__main__":
    errors.run(main)
