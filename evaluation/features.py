"""Photos -> squares of one size -> a network -> feature vectors, kept on disk by content hash.

Real and generated images are prepared alike: cut to the square that training would use, then resized once,
bicubic and antialiased, in float without rounding back to 8 bits (Parmar et al. 2022, 2104.11222).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset.augmentation import close_box, square_box
from dataset.image_files import read_image
from dataset.layouts import Photo
from dataset.mask_files import mask_parts
from evaluation.networks import Network
from runtime.errors import UserError
from runtime.files import sha256
from runtime.tensor_files import read_own, save_tensors

CROP, CLOSEST = 1.5, 6  # a crop is 1.5 times as wide as the damage, and a sixth of the picture at least
SHARD = 512  # vectors a file: what a killed run loses at most
READING = 2  # how files become squares; raise it with every change, so that older features are not used


def resize(image: np.ndarray, size: int) -> Tensor:
    """(H, W, 3) of 0 to 255 -> (3, size, size) in [-1, 1]."""
    x = torch.tensor(image).permute(2, 0, 1).float()
    x = F.interpolate(x[None], (size, size), mode="bicubic", antialias=True, align_corners=False)[0]
    return x.clamp(0, 255) / 127.5 - 1


def read_square(photo: Photo, size: int, crop: bool = False) -> Tensor:
    """The photo's square, or with `crop` the square around its damage, (3, size, size) in [-1, 1].

    Raises UserError where a file cannot be decoded, or where a crop is wanted and the mask is empty.
    """
    image = read_image(photo.image)
    height, width = image.shape[:2]
    region = photo.region() if crop or height != width else None
    if crop and (region is None or not region.any()):
        raise UserError(f"{photo.mask}: empty, so there is no damage to cut out; draw it or remove both")
    return cut_square(image, region, size, crop)


def cut_square(image: np.ndarray, region: np.ndarray | None, size: int, crop: bool = False) -> Tensor:
    """The square of an image (H, W, 3) that training would use, moved to hold the damage (H, W); with `crop`
    the square around the damage, which is not empty. (3, size, size) in [-1, 1]."""
    if crop and region is not None:
        top, left, side = close_box(region, CROP, CLOSEST)
    else:
        top, left, side = square_box(image.shape, region)
    return resize(image[top:top + side, left:left + side], size)


def read_mask_square(photo: Photo, size: int) -> Tensor:
    """(1, size, size) in {0, 1}: where the damage is in the photo's square; zeros without a mask."""
    region = photo.region()
    if region is None:
        return torch.zeros(1, size, size)
    top, left, side = square_box(region.shape, region)
    cut = torch.tensor(region[top:top + side, left:left + side])[None].float()
    return F.adaptive_max_pool2d(cut, size)  # nothing thin is lost


class Squares(torch.utils.data.Dataset):
    """Photos as squares, for a DataLoader."""

    def __init__(self, photos: list[Photo], size: int, crop: bool = False) -> None:
        self.photos, self.size, self.crop = photos, size, crop

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Tensor:
        return read_square(self.photos[index], self.size, self.crop)

    def batches(self, batch_size: int, workers: int) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self, batch_size=batch_size, num_workers=workers)


def read_squares(photos: list[Photo], size: int) -> Tensor:
    """All squares at once, (N, 3, size, size)."""
    return torch.stack([read_square(photo, size) for photo in photos])


class FeatureStore:
    """Feature vectors of one network, computed once for each content, whatever the file's name.

    A photo's key is the hash of its image file and of its mask file, on which the square depends.
    """

    def __init__(self, network: Network, folder: Path, batch_size: int = 32, workers: int = 0) -> None:
        self.network, self.folder, self.batch_size, self.workers = network, folder, batch_size, workers
        self._vectors: dict[str, np.ndarray] = {}
        self._hashes: dict[Path, str] = {}
        self._shards = sorted(folder.glob(f"{self._prefix}-*.safetensors"))
        for shard in self._shards:
            tensors, about = read_own(shard, "features")
            self._vectors |= dict(zip(about["keys"], tensors["features"].numpy(), strict=True))

    @property
    def _prefix(self) -> str:
        return f"{self.network.name}-{self.network.digest}-{READING}"

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]

    def _key(self, photo: Photo, crop: bool) -> str:
        parts = mask_parts(photo.mask) if photo.mask else []
        mask = f" {' '.join(map(self._hash, parts))} {photo.mask_value}" if parts else ""
        return f"{self._hash(photo.image)}{mask}{' crop' if crop else ''}"

    def __call__(self, photos: list[Photo], crop: bool = False) -> np.ndarray:
        """(len(photos), dim) float32; with `crop`, of the square about each damage."""
        keys = [self._key(photo, crop) for photo in photos]
        todo = {key: photo for key, photo in zip(keys, photos, strict=True) if key not in self._vectors}
        with tqdm(total=len(todo), desc=f"features ({self.network.name})", unit="image",
                  disable=None if todo else True) as bar:
            for start in range(0, len(todo), SHARD):
                some = dict(list(todo.items())[start:start + SHARD])
                self._compute(list(some), Squares(list(some.values()), self.network.size, crop))
                bar.update(len(some))
        return np.stack([self._vectors[key] for key in keys])

    @torch.no_grad()
    def _compute(self, keys: list[str], squares: Squares) -> None:
        """Fill and save one shard."""
        vectors = np.concatenate([self.network.trunk(batch.to(self.network.device)).float().cpu().numpy()
                                  for batch in squares.batches(self.batch_size, self.workers)])
        self._vectors |= dict(zip(keys, vectors, strict=True))
        path = self.folder / f"{self._prefix}-{len(self._shards):04d}.safetensors"
        save_tensors(path, {"features": torch.from_numpy(vectors)}, "features", {"keys": keys})
        self._shards.append(path)
