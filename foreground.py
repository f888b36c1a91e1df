"""Where the object lies in a photo, from the photo itself: what differs from the picture's border."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

SIDE = 256  # photos are looked at this small
# How far damage may wander, in radii of the object; on a round one it belongs to a distance from the centre.
ROUND, OBJECT, TEXTURE = 0.0, 0.15, 0.6


class Object(NamedTuple):
    """What a photo shows: its region (H,W) bool, centre (x, y) and radius in pixels, and its kind."""

    region: np.ndarray
    centre: np.ndarray
    radius: float
    round: bool
    freedom: float

    @property
    def texture(self) -> bool:
        """Whether it is the whole picture."""
        return self.freedom == TEXTURE

    def share(self, points: np.ndarray) -> float:
        """The share of points (N,2) in (x, y) that lie on the object."""
        x, y = np.floor(points).astype(int).T
        height, width = self.region.shape
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return float((inside & self.region[y.clip(0, height - 1), x.clip(0, width - 1)]).mean())


def find_object(photo: np.ndarray, damage: np.ndarray | None = None) -> Object:
    """The object in a photo (H,W,3) uint8, with the `damage` (H,W), which may have eaten into it, made whole.

    A picture that has no clear border, such as of cloth, is all object: a texture.
    """
    height, width = photo.shape[:2]
    factor = max(1.0, max(height, width) / SIDE)
    size = (round(width / factor), round(height / factor))
    small = np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BOX), np.float32)
    region = _unlike_the_border(small)
    if damage is not None:
        region |= np.asarray(Image.fromarray(damage * 255).resize(size, Image.Resampling.BOX)) > 127
    y, x = np.nonzero(region)
    if not 0.02 < region.mean() < 0.95:
        return _whole(height, width, TEXTURE)
    centre = np.array([x.mean(), y.mean()]) + 0.5
    rim = np.argwhere(region & ~scipy.ndimage.binary_erosion(region, border_value=0))[:, ::-1] + 0.5
    distance = np.hypot(*(rim - centre).T)
    radius = float(np.median(distance))
    # A quarter of the rim may be out of round: something broken off, or dirt that hangs over it.
    is_round = bool(np.percentile(np.abs(distance / radius - 1), 75) < 0.04)
    full = Image.fromarray(region.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return Object(np.asarray(full) > 0, centre * factor, radius * factor, is_round,
                  ROUND if is_round else OBJECT)


def as_seen_in_both(source: Object, target: Object) -> tuple[Object, Object]:
    """Both as they are or, where an object was found in one photo only, both as whole pictures.

    Then the photos are taken to be alike: damage wanders no further than on an object.
    """
    if source.texture == target.texture:
        return source, target
    return _whole(*source.region.shape, OBJECT), _whole(*target.region.shape, OBJECT)


def _whole(height: int, width: int, freedom: float) -> Object:
    """A picture that is all object."""
    return Object(np.ones((height, width), bool), np.array([width, height]) / 2,
                  float(np.sqrt(width * height / np.pi)), False, freedom)


def _unlike_the_border(small: np.ndarray) -> np.ndarray:
    """(h,w) bool for a photo (h,w,3): the largest patch unlike what lies along the border, filled."""
    frame = np.ones(small.shape[:2], bool)
    width = max(2, min(frame.shape) // 32)
    frame[width:-width, width:-width] = False
    y, x = np.indices(frame.shape)
    plane = np.stack([np.ones(frame.shape), x, y], axis=2)  # light often falls off to one side
    background = plane @ np.linalg.lstsq(plane[frame], small[frame], rcond=None)[0]
    distance = np.abs(small - background).max(axis=2)
    # The border may be uneven or the object may touch it here and there.
    region = distance > 10 + 2 * np.percentile(distance[frame], 75)
    region = scipy.ndimage.binary_fill_holes(scipy.ndimage.binary_closing(region, iterations=2))
    labels, count = scipy.ndimage.label(scipy.ndimage.binary_opening(region, iterations=2))
    if count == 0 or region[frame].mean() > 0.5:
        return np.ones_like(region)
    largest = 1 + int(np.argmax(scipy.ndimage.sum_labels(region, labels, range(1, count + 1))))
    return labels == largest
