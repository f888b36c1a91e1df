"""The VAE's training pictures: procedural ones, photographic textures, and products made of these.

The textures come from packages whose licence lets the weights be given away (SOURCES; how to install them:
tiny/README.md). Only the VAE's training needs them.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm import tqdm

from runtime.errors import UserError
from runtime.seeds import numpy_rng, torch_rng
from tiny.families import chance
from tiny.grid import Array, Generator, coverage, to_uint8
from tiny.procedural import draw
from tiny.products import draw_product

# package: (folder in it, names of its pictures). scikit-image says of each of these that it is CC0 or in the
# public domain; robosuite and metaworld are under the MIT licence. Left out: brands, drawings, doubles.
SOURCES: dict[str, tuple[str, str]] = {
    "skimage": ("data", "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png "
                "grass.png gravel.png hubble_deep_field.jpg retina.jpg rocket.jpg text.png"),
    "robosuite": ("models/assets/textures",
                  "blue-wood brass-ambra bread ceramic clay cream-plaster dark-wood dirt glass gray-felt "
                  "gray-plaster gray-woodgrain green-wood lemon light-gray-floor-tile light-gray-plaster "
                  "light-wood metal pink-plaster red-wood steel-brushed steel-scratched white-bricks "
                  "white-plaster wood-tiles wood-varnished-panels yellow-plaster"),
    "metaworld": ("assets", "scene/textures/fabricPattern scene/textures/fabricPlain scene/textures/metal "
                  "scene/textures/metal1 scene/textures/plaster scene/textures/white_marble_tile "
                  "scene/textures/white_marble_tile2 scene/textures/wood scene/textures/wood2 "
                  "textures/brick1 textures/darkwood textures/floor1 textures/floor2 textures/granite "
                  "textures/light_wood textures/light_wood_v2 textures/light_wood_v3 textures/marble "
                  "textures/metal1 textures/metal2 textures/navy_blue textures/plaster1 textures/real_door "
                  "textures/wood textures/wood1 textures/wood2 textures/wood3 textures/wood4 "
                  "textures/wood_light"),
}
INSTALL = "pip install --no-deps scikit-image==0.26.0 robosuite==1.5.2 metaworld==3.1.1"
LONGEST = 900  # pixels: larger photos are shrunk when they are read
PHOTOS, MADE_OF = 0.3, 0.2  # shares of the pictures: crops of photos, and products with such a surface


def photo_files() -> list[Path]:
    """The photos of SOURCES. Raises UserError where a package or a file is missing."""
    files = []
    for package, (folder, names) in SOURCES.items():
        spec = find_spec(package)  # found, but not imported: its own requirements are not needed
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"{package}: not installed; {INSTALL}, or give --no-photos")
        root = Path(next(iter(spec.submodule_search_locations))) / folder
        files += [root / (name if "." in name else f"{name}.png") for name in names.split()]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; {INSTALL}")
    return files


@lru_cache(maxsize=1)
def photos() -> list[Image.Image]:
    """All photos, RGB, with sides of at most LONGEST pixels."""
    found = []
    for file in photo_files():
        with Image.open(file) as image:
            found.append(image.convert("RGB"))
            found[-1].thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    return found


def crop_photo(rng: Generator, size: int) -> Array:
    """A random part of a photo, at a random scale and with other colours, (3, size, size) in [0, 1]."""
    found = photos() + photos()[:13]  # those that show more than one surface, twice as often
    photo = found[int(rng.integers(len(found)))]
    shorter = min(photo.size)
    side = int(min(shorter, size * np.exp(rng.uniform(np.log(0.8), np.log(5.0)))))
    left, top = (int(rng.integers(0, longer - side + 1)) for longer in photo.size)
    part = photo.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    image = np.asarray(part, np.float32).transpose(2, 0, 1) / 255
    grey = image.mean(0, keepdims=True)
    image = grey + float(rng.uniform(0.0, 1.3)) * (image - grey)  # other saturation
    tint = rng.uniform(0.75, 1.25, (3, 1, 1)).astype(np.float32) if chance(rng, 0.5) else 1.0
    return np.clip(image, 0, 1) ** float(rng.uniform(0.6, 1.6)) * tint


def made_of_photo(rng: Generator, size: int) -> Array:
    """A product on its backdrop, shaded as drawn, with a photographic surface, (3, size, size) in [0, 1]."""
    product, texture = draw_product(rng, size), crop_photo(rng, size)
    where = coverage(product.body, 2.0 / size)
    shade = product.image.mean(0) / max(float((product.image.mean(0) * where).sum() / where.sum()), 0.05)
    return product.image + where * (texture * np.clip(shade, 0.2, 2.5) - product.image)


def photographed(rng: Generator, image: Array) -> Array:
    """`image` (3, S, S) in [0, 1] as a camera gives it, (S, S, 3) uint8: exposure, blur, noise, JPEG."""
    image = image * float(rng.uniform(0.75, 1.2))
    if chance(rng, 0.25):
        image = gaussian_filter(image, (0, *[float(rng.uniform(0.3, 0.9))] * 2))
    if chance(rng, 0.5):
        image = image + rng.standard_normal(image.shape, np.float32) * float(np.exp(rng.uniform(-6, -3.2)))
    pixels = to_uint8(image)
    if chance(rng, 0.3):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=int(rng.integers(50, 96)))
        pixels = np.asarray(Image.open(file))
    return pixels


def picture(seed: int, with_photos: bool, size: int = 128) -> Array:
    """The training picture of `seed`, (S, S, 3) uint8."""
    rng = numpy_rng("picture", seed)
    kind = rng.random() if with_photos else 1.0
    if kind < PHOTOS:
        image = crop_photo(rng, size)
    elif kind < PHOTOS + MADE_OF:
        image = made_of_photo(rng, size)
    else:
        image = draw(seed, size).image.transpose(2, 0, 1).astype(np.float32) / 255
    return photographed(rng, image)


def _pictures(seeds: range, with_photos: bool) -> Array:
    """The pictures of `seeds`, (B, S, S, 3)."""
    return np.stack([picture(seed, with_photos) for seed in seeds])


class PictureFile:
    """`count` training pictures in a file that is drawn once, about 49 kB a picture."""

    def __init__(self, folder: Path, count: int, with_photos: bool) -> None:
        """Draws the file, in as many processes as torch has threads, if `folder` lacks it."""
        path = folder / f"pictures-{count}{'' if with_photos else '-no-photos'}.npy"
        if not path.exists():
            if with_photos:
                photo_files()  # before the processes start
            self._draw(path, count, with_photos)
        self.pixels = np.load(path, mmap_mode="r")

    @staticmethod
    def _draw(path: Path, count: int, with_photos: bool) -> None:
        part = path.with_suffix(".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.lib.format.open_memmap(part, "w+", np.uint8, (count, 128, 128, 3))
        parts = [range(first, min(first + 16, count)) for first in range(0, count, 16)]
        with multiprocessing.get_context("spawn").Pool(torch.get_num_threads()) as workers:
            jobs = [(seeds, workers.apply_async(_pictures, (seeds, with_photos))) for seeds in parts]
            for seeds, job in tqdm(jobs, "drawing", disable=None):
                pixels[seeds.start:seeds.stop] = job.get()
        pixels.flush()
        part.replace(path)

    def batches(self, size: int, start: int, stop: int) -> Iterator[Tensor]:
        """The batches of steps `start` to `stop` - 1: (size, 3, 128, 128) in [-1, 1], flipped and turned at
        random, functions of the step alone."""
        for step in range(start, stop):
            rng = torch_rng("batch", step)
            which = torch.randint(0, len(self.pixels), (size,), generator=rng)
            image = torch.from_numpy(self.pixels[which.numpy()]).permute(0, 3, 1, 2).float() / 127.5 - 1
            turns = torch.randint(0, 8, (size,), generator=rng).tolist()
            yield torch.stack([turned(one, turn) for one, turn in zip(image, turns, strict=True)])


def turned(image: Tensor, turn: int) -> Tensor:
    """image (..., S, S) in one of its 8 orientations."""
    return torch.rot90(image.flip(-1) if turn >= 4 else image, turn % 4, (-2, -1))
