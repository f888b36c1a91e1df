"""Each item's photo and damage as training reads them, decoded once as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dataset import augmentation
from dataset.image_files import read_image
from dataset.layouts import GOOD, Photo, is_good
from dataset.mask_files import read_mask, region_of
from dataset.padding import padded
from runtime.errors import UserError

CACHE_BYTES = 2 << 30
CACHED = 64 << 20  # bytes of an image that is kept, at most

Pixels = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Item(Photo):
    """A photo with its class id."""

    class_id: int


class DecodedPhotos:
    """item -> its photo (H,W,3) uint8 and, where wanted, its damage (H,W) uint8 in {0,1}.

    shrunk: by a whole factor where a photo is far too large for `resolution`. pads: to a square, see
    padding.py. channels: above 1, the damage is all of its photo, a bit a class, int32. wanted: of which
    items the damage is read. required: a damaged image's mask may not be empty; otherwise that counts as no
    mask. Raises UserError where a file cannot be decoded, and for such a mask.
    """

    def __init__(self, items: list[Item], resolution: int, *, shrunk: bool, pads: bool, channels: int,
                 wanted: Callable[[int], bool], required: bool) -> None:
        self.items, self.resolution, self.shrunk, self.pads = items, resolution, shrunk, pads
        self.channels, self.wanted, self.required = channels, wanted, required
        self._kept: dict[int, Pixels] = {}
        self._last: tuple[int, Pixels] | None = None
        self._room = CACHE_BYTES

    def __call__(self, index: int) -> Pixels:
        if index in self._kept:
            return self._kept[index]
        last = self._last  # read once, because another thread may replace it
        if last and index == last[0]:
            return last[1]
        last = self._last = None  # let it go before another is in memory
        image = read_image(self.items[index].image)
        region = self._region(self.items[index]) if self.wanted(index) else None
        shown = max(image.shape[:2]) if self.pads else min(image.shape[:2])
        factor = augmentation.shrink_factor(shown, self.resolution)
        if self.shrunk and factor > 1:
            image = augmentation.shrink(image, factor)
            region = None if region is None else augmentation.shrink(region, factor)
        if self.pads:
            image, region = padded(image), None if region is None else padded(region)
        self._last = index, (image, region)
        if (size := _bytes(image, region)) <= min(self._room, CACHED):
            self._kept[index] = image, region
            self._room -= size
        return image, region

    def own(self, index: int) -> Pixels:
        """The same, but the damage is the item's own."""
        image, region = self(index)
        if region is None or self.channels == 1:
            return image, region
        return image, (region >> self.items[index].class_id & 1).astype(np.uint8)

    def fill(self) -> None:
        """Decode as many images as are kept."""
        for index in range(len(self.items)):
            if _bytes(*self(index)) > self._room:
                return

    def _region(self, item: Item) -> np.ndarray | None:
        """The damage of one item's file, before it is shrunk and padded.

        Bits pass through augmentation as they are: resampling takes nearest points and joins them by "or".
        """
        region = item.region()
        if region is None:
            return None
        if not region.any() and not is_good(item.damage):
            if not self.required:
                return None
            raise UserError(f"{item.mask}: empty, but its image is not {GOOD}; draw it or move the image")
        if self.channels == 1:
            return region
        bits = np.zeros(region.shape, np.int32)
        for other in self.items:
            if other.image == item.image and other.mask is not None:
                bits |= region_of(read_mask(other.mask), other.mask_value).astype(np.int32) << other.class_id
        return bits


def _bytes(image: np.ndarray, region: np.ndarray | None) -> int:
    return image.nbytes + (0 if region is None else region.nbytes)
