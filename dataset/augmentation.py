"""Paired augmentation of an image and its mask: one affine resampling, then brightness and contrast.

`orientation="any"` (the default) is for textures and for parts seen from above in any direction: flips,
quarter turns and up to 10 degrees more. Larger angles would mirror the object into the image's corners.
`orientation="fixed"` is for parts with print or a fixed mounting: no flips, no quarter turns. Zoom and shift
are small, because damage outside the image makes its label wrong; with a mask, the motion is weakened until
the damage stays inside. Hue does not change: colour can be the damage.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

ORIENTATIONS = ("any", "fixed")
MAX_ANGLE = math.radians(10)
MAX_ZOOM = 0.03
MAX_SHIFT = 0.03  # of half the side: 1.5 % of the picture
MAX_GAMMA = 0.1
MAX_CONTRAST = 0.2

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def square_box(shape: tuple[int, ...], mask: np.ndarray | None = None) -> tuple[int, int, int]:
    """(top, left, side) of the largest square in an image of `shape` (H,W,..): in the middle, or moved along
    the longer side to hold the damage, or as much of it as fits."""
    height, width = shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if mask is not None and mask.any():
        top, left = (_start(np.count_nonzero(mask, axis=1 - axis), side) for axis in (0, 1))
    return top, left, side


def _start(damage: np.ndarray, side: int) -> int:
    """The start of the window of `side` entries with the most damage; of equal ones, the most central."""
    there = np.flatnonzero(damage)
    middle = int(np.clip((there[0] + there[-1] + 1 - side) // 2, 0, len(damage) - side))
    if there[-1] - there[0] < side:
        return middle
    total = np.concatenate([[0], np.cumsum(damage)])
    inside = total[side:] - total[:-side]
    best = np.flatnonzero(inside == inside.max())
    return int(best[np.abs(best - middle).argmin()])


def shrink_factor(side: int, resolution: int) -> int:
    """The whole factor by which `prepare` shrinks a square of `side` pixels."""
    return max(1, int(side / (1.5 * resolution)))


def close_box(mask: np.ndarray, extents: float, closest: int) -> tuple[int, int, int]:
    """(top, left, side) of the square around the damage (H,W): `extents` times its extent, at least 1/closest
    of the image's shorter side, moved to lie within the image."""
    rows, columns = np.nonzero(mask)
    shorter, extent = min(mask.shape), max(np.ptp(rows), np.ptp(columns)) + 1
    side = int(np.clip(extents * extent, shorter // closest, shorter))
    top = int(np.clip((rows.min() + rows.max() + 1 - side) // 2, 0, mask.shape[0] - side))
    left = int(np.clip((columns.min() + columns.max() + 1 - side) // 2, 0, mask.shape[1] - side))
    return top, left, side


def prepare(values: np.ndarray, box: tuple[int, int, int], resolution: int) -> np.ndarray:
    """Cut `box` out of an image (H,W,3) or a mask (H,W); `shrink` it by a whole factor if it is far too big.

    At least 1.5 pixels remain for each one of `resolution`; `warp` resamples to the exact size.
    """
    top, left, side = box
    return shrink(values[top:top + side, left:left + side], shrink_factor(side, resolution))


def shrink(values: np.ndarray, factor: int) -> np.ndarray:
    """An image (H,W,3) or mask (H,W) by a whole factor; what remains at its end is cut off. Images are
    averaged; a mask keeps every pixel that touches the damage, so thin scratches survive."""
    height, width = (length // factor for length in values.shape[:2])
    if factor == 1:
        return values.copy()
    cut = values[:height * factor, :width * factor]
    if values.ndim == 3:
        return np.array(Image.fromarray(np.ascontiguousarray(cut)).reduce(factor))
    return np.bitwise_or.reduce(cut.reshape(height, factor, width, factor), axis=(1, 3))


def _matrix(turns: int, flip: int, angle: float, zoom: float, shift: np.ndarray) -> np.ndarray:
    """The (2,3) map from the output's coordinates in [-1,1] to the source's."""
    quarter = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), turns)  # exact, unlike cos and sin
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirror = np.diag([-1.0 if flip else 1.0, 1.0])
    return np.column_stack([rotation @ quarter @ mirror / zoom, shift])


def _inside(mask: np.ndarray, matrix: np.ndarray) -> float:
    """The share of the mask's pixels that `matrix` leaves inside the picture."""
    points = (np.argwhere(mask)[:, ::-1] + 0.5) / mask.shape[0] * 2 - 1
    moved = (points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return float((np.abs(moved) <= 1).all(axis=1).mean())


def draw_motion(rng: np.random.Generator, orientation: str, mask: np.ndarray | None = None,
                slim: float = 1.0) -> np.ndarray:
    """A random (2,3) matrix for `warp`. With a mask (S,S), at least 98 % of the damage stays inside.

    slim: of what lies in the middle of the square, the shorter side as a share of the longer; where it is not
    1, it is turned and shifted less, and by half turns instead of quarter turns, to stay about there.
    """
    turns, flip = int(rng.integers(4)), int(rng.integers(2))
    if orientation == "fixed":
        turns = flip = 0
    elif slim != 1:
        turns -= turns % 2
    angle, zoom = slim * rng.uniform(-MAX_ANGLE, MAX_ANGLE), rng.uniform(-MAX_ZOOM, MAX_ZOOM)
    shift = slim * rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=2)
    for strength in (1.0, 0.5, 0.25):
        matrix = _matrix(turns, flip, strength * angle, 1 + strength * zoom, strength * shift)
        if mask is None or not mask.any() or _inside(mask, matrix) >= 0.98:
            return matrix
    return _matrix(turns, flip, 0.0, 1.0, 0 * shift)  # flips and quarter turns lose nothing


def warp(image: np.ndarray, matrix: np.ndarray, resolution: int) -> np.ndarray:
    """Resample a square image (S,S,3) uint8 through `matrix` to (R,R,3) uint8, once, without aliasing.

    Of a larger source k x k points are interpolated for each output pixel and averaged. Beyond the border the
    image is mirrored, so no black wedge appears.
    """
    k = _oversampling(image, resolution)
    # Averaging needs no sharp kernel; where nothing is averaged, bicubic keeps the image crisp.
    kernel = Image.Resampling.BILINEAR if k > 1 else Image.Resampling.BICUBIC
    return np.asarray(_look_up(image, matrix, resolution * k, kernel).reduce(k))


def warp_mask(mask: np.ndarray, matrix: np.ndarray, resolution: int) -> np.ndarray:
    """Resample a mask (S,S), which may be of bits, one a class, to (R,R), at the points where `warp` reads an
    image. Each point takes its nearest pixel; one on the damage is enough for an output pixel to be on it."""
    k = _oversampling(mask, resolution)
    points = np.asarray(_look_up(mask, matrix, resolution * k, Image.Resampling.NEAREST))
    return np.bitwise_or.reduce(points.reshape(resolution, k, resolution, k), axis=(1, 3))


def _oversampling(values: np.ndarray, resolution: int) -> int:
    """How many points are read for an output pixel, each way."""
    return max(1, math.ceil(len(values) / resolution))


def _look_up(values: np.ndarray, matrix: np.ndarray, size: int, kernel: Image.Resampling) -> Image.Image:
    """`values` (S,S) or (S,S,3) at the (size, size) points of `matrix`, mirrored beyond the border."""
    side, linear, shift = len(values), matrix[:, :2], matrix[:, 2]
    reach = np.abs(np.abs(linear).sum(axis=1) + np.abs(shift)).max()  # of the corner farthest out
    margin = max(0, math.ceil((reach - 1) * side / 2)) + 2  # 2: the reach of the bicubic kernel
    offset = side / 2 * (shift + 1 - linear.sum(axis=1)) + margin  # [-1,1] is [0,side] in pixels
    (a, b), (d, e) = (linear * side / size).tolist()
    coefficients = (a, b, float(offset[0]), d, e, float(offset[1]))
    padding = [(margin, margin)] * 2 + [(0, 0)] * (values.ndim - 2)
    mirrored = Image.fromarray(np.pad(values, padding, mode="symmetric"))
    return mirrored.transform((size, size), Image.Transform.AFFINE, coefficients, kernel)


def relight(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness and contrast of a uint8 image a little. Returns float32 in [0,1].

    Both bend the tone curve between its ends: black stays black and a white background white.
    """
    brightness, contrast = rng.uniform(-1, 1, size=2)
    levels = (np.arange(256) / 255) ** math.exp(MAX_GAMMA * brightness)
    levels += MAX_CONTRAST * contrast * levels * (1 - levels) * (2 * levels - 1)
    return levels.astype(np.float32)[image]
