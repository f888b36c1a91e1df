"""--view: which square of a photo a training example shows, and which is painted.

    whole   the largest square; of a photo that is not square, it moves along the longer side
    close   a square around one damaged place, from just holding it to as wide as its damage still shows
    mixed   by turns a whole and a close one

Each place of damage has its turn, epoch after epoch, so none is lost however far apart they lie. A close view
enlarges the photo at most CLOSEST times, because nothing more is in its pixels.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np
import scipy

from dataset.augmentation import IDENTITY, prepare, shrink_factor, square_box, warp_mask
from dataset.masks import CELL, latent_cells

VIEWS = ("whole", "close", "mixed")
CLOSEST = 2.0  # pixels of the model for one of the photo, at most
HELD = 1.5  # side of the closest view, in extents of the damage
SEEN = 2  # latent cells across which damage shows in the widest of the close views
TURNS = 10**6
MOST = 50  # places whose latent cells are counted
BORDER = 0.12  # of a view's side, to each side: turned, moved and zoomed out, augmentation reads no farther

Box = tuple[int, int, int]  # (top, left, side) of a square, in pixels
Place = tuple[int, int, int, int]  # (top, left, bottom, right) around damage


def kind_of(view: str, turn: int) -> tuple[str, int]:
    """"whole" or "close", and which turn of that kind it is: `mixed` alternates."""
    return (("whole", "close")[turn % 2], turn // 2) if view == "mixed" else (view, turn)


def places_of(region: np.ndarray | None, kind: str, resolution: int) -> list[Place]:
    """The damage (H,W) as few places, each of which fits into one view of that kind; without damage none.

    A connected region that is longer than the photo's shorter side is cut into pieces.
    """
    if region is None or not region.any():
        return []
    side = min(region.shape)
    top, left, bottom, right = around(region)
    labels, _ = scipy.ndimage.label(region[top:bottom, left:right], np.ones((3, 3)))
    found = [piece for rows, columns in scipy.ndimage.find_objects(labels)
             for piece in _pieces((top + rows.start, left + columns.start, top + rows.stop,
                                   left + columns.stop), side)]
    room = side if kind == "whole" else min(side, resolution / CLOSEST) / HELD
    along = int(region.shape[1] > region.shape[0])
    rest, groups = sorted(found, key=lambda place: (place[along], place)), list[Place]()
    while rest:  # in the order of the longer side, so that as few as possible cover a strip
        group, others, most = rest[0], list[Place](), max(room, longer_side(rest[0]))
        end = bisect_left(rest, group[along] + most, key=lambda place: place[along])  # from there: too far
        for place in rest[1:end]:
            both = joined(group, place)
            if longer_side(both) <= most:
                group = both
            else:
                others.append(place)
        groups.append(group)
        rest = others + rest[max(end, 1):]
    return groups


def around(region: np.ndarray) -> Place:
    """The smallest place that holds all damage (H,W), of which there is some."""
    rows, columns = (np.flatnonzero(region.any(axis=axis)) for axis in (1, 0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def joined(one: Place, other: Place) -> Place:
    """The smallest place that holds both."""
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])


def longer_side(place: Place) -> int:
    """The longer side of a place."""
    return max(place[2] - place[0], place[3] - place[1])


def _pieces(place: Place, side: int) -> list[Place]:
    """A place in pieces of `side` pixels at most, of one size."""
    starts = [np.linspace(place[i], place[i + 2], math.ceil((place[i + 2] - place[i]) / side) + 1).astype(int)
              for i in (0, 1)]
    return [(int(top), int(left), int(bottom), int(right))
            for top, bottom in zip(starts[0], starts[0][1:], strict=False)
            for left, right in zip(starts[1], starts[1][1:], strict=False)]


def stand_in(rng: np.random.Generator, shape: tuple[int, ...], extent: int, region: np.ndarray | None
             ) -> Place:
    """A place as large as some damage on a photo (H,W,..) without any: on its object, anywhere without one.

    region: the object (h,w) at any size, or None.
    """
    height, width = shape[:2]
    if region is None:
        y, x = rng.integers(height), rng.integers(width)
    else:
        cells = np.argwhere(region)
        y, x = (cells[rng.integers(len(cells))] + rng.uniform(size=2)) * shape[:2] / region.shape
    extent = min(extent, height, width)
    top, left = (int(np.clip(middle - extent / 2, 0, length - extent))
                 for middle, length in ((y, height), (x, width)))
    return top, left, top + extent, left + extent


def moved_place(place: Place, linear: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> Place | None:
    """Around a place whose points p (x,y) are moved to linear @ p + shift, as far as it lies in a photo
    (H,W,..) and fits into its shorter side; None where nothing does."""
    top, left, bottom, right = place
    corners = np.array([(x, y) for x in (left, right) for y in (top, bottom)]) @ linear.T + shift
    low = np.clip(np.floor(corners.min(axis=0))[::-1], 0, shape[:2]).astype(int)
    high = np.clip(np.ceil(corners.max(axis=0))[::-1], 0, shape[:2]).astype(int)
    if (low >= high).any():
        return None
    over = np.maximum(0, high - low - min(shape[:2]))
    low, high = low + over // 2, high - (over - over // 2)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _sides(kind: str, shape: tuple[int, ...], resolution: int, place: Place) -> tuple[float, float]:
    """The smallest and the largest side of a view of `place` in a photo (H,W,..)."""
    shorter, extent = min(shape[:2]), longer_side(place)
    if kind == "whole":
        return shorter, shorter
    low = min(shorter, max(HELD * extent, resolution / CLOSEST))
    return low, min(shorter, max(low, extent * resolution / (SEEN * CELL)))


def draw_window(rng: np.random.Generator, kind: str, shape: tuple[int, ...], resolution: int,
                place: Place) -> Box:
    """A random view of a photo (H,W,..) that holds `place`, which may lie anywhere in it."""
    low, high = _sides(kind, shape, resolution, place)
    side = int(low * (high / low) ** rng.uniform())
    top, left = (int(rng.integers(*_starts(side, place[i], place[i + 2], shape[i]))) for i in (0, 1))
    return top, left, side


def widened(box: Box, shape: tuple[int, ...]) -> Box:
    """The box with a border on all sides, as far as the photo (H,W,..) reaches and augmentation looks: what
    turns into view is then the photo's own, not mirrored."""
    top, left, side = box
    border = min(math.ceil(BORDER * side), top, left, shape[0] - top - side, shape[1] - left - side)
    return top - border, left - border, side + 2 * border


def _starts(side: int, first: int, end: int, length: int) -> tuple[int, int]:
    """Where a window of `side` may start to hold [first, end) of `length` pixels, as a range; of one longer
    than itself it shows the middle."""
    low, high = max(0, end - side), min(first, length - side)
    if low > high:
        low = high = int(np.clip((first + end - side) // 2, 0, length - side))
    return low, high + 1


def middle_window(kind: str, shape: tuple[int, ...], resolution: int, place: Place) -> Box:
    """The view of `place` between the closest and the widest, with `place` in its middle, as far as the
    photo (H,W,..) reaches. `prepare` shrinks it without a remainder."""
    low, high = _sides(kind, shape, resolution, place)
    side = int(math.sqrt(low * high))
    side -= side % shrink_factor(side, resolution)
    top, left = (int(np.clip((place[i] + place[i + 2] - side) // 2, 0, shape[i] - side)) for i in (0, 1))
    return top, left, side


def cells_of(region: np.ndarray, kind: str, resolution: int) -> int:
    """The latent cells that damage (H,W) touches in a view of that kind, `whole` or `close`: the median over
    its places, of many over MOST of them."""
    places = places_of(region, kind, resolution)
    boxes = [middle_window(kind, region.shape, resolution, place)
             for place in places[::math.ceil(len(places) / MOST) or 1]]
    if kind == "whole":  # all that one square shows
        boxes = [square_box(region.shape, region)] if boxes else []
    cut = (warp_mask(prepare(region, box, resolution), IDENTITY, resolution) for box in boxes)
    found = [latent_cells(mask) for mask in cut]
    return int(np.median(found)) if found else 0
