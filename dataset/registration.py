"""How well one photo, moved, agrees with another: around a mask, and over the object where there is one.

A photo is compared by its brightness, by the strength of its edges, which does not depend on where the light
is, and by where its object is. The score is the normalised correlation of these, 1 where photos are equal.
All poses and shifts are compared at a very small size, by Fourier transforms (Padfield, "Masked object
registration in the Fourier domain", 2012); the best ones are refined at a larger size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy
from PIL import Image

from dataset.views import CHANNELS, SIDE, View, middle_of, weights_of

# Of the search: the target's side; the side of a window of the other photo about its damage; how far outside
# the target the damage may come to lie; the period of the transforms, beyond which shifts would wrap.
CELLS, WINDOW, MARGIN, PERIOD = 16, 24, 4, 32
TURN = 10.0  # degrees between the angles that are searched; a divisor of 90
FIXED = 5.0  # degrees that a part of fixed orientation may be turned
NOISE = 6.0  # grey levels: differences that do not count
POINTS = 300  # compared points, half of them around the damage
ROUNDS = 7  # of the refinement, whose steps are halved
OVERLAP = 0.3  # less of a photo than this within the other tells nothing
INSIDE = 0.95  # share of the damage that must be in the photo; of its share on the object, that must be on it


class Poses(NamedTuple):
    """N ways to move a view onto another: angle in degrees (N,), mirrored or not (N,), scale (N,), and the
    point (x, y) of the other view where the middle of the damage comes to lie (N,2)."""

    angle: np.ndarray
    mirrored: np.ndarray
    scale: np.ndarray
    middle: np.ndarray

    def take(self, which: np.ndarray) -> Poses:
        """Some of them."""
        return Poses(*(values[which] for values in self))

    def linear(self) -> np.ndarray:
        """(N,2,2): a vector of the first view becomes linear @ vector in the other."""
        c, s = np.cos(np.radians(self.angle)), np.sin(np.radians(self.angle))
        side = np.where(self.mirrored, -1.0, 1.0)
        return self.scale[:, None, None] * np.array([[c * side, -s], [s * side, c]]).transpose(2, 0, 1)


def correlation(n: np.ndarray, s: np.ndarray, ss: np.ndarray, t: np.ndarray, tt: np.ndarray, st: np.ndarray,
                whole: np.ndarray | float, even: np.ndarray | float = 0.0) -> np.ndarray:
    """Normalised correlation of two weighted sets of levels, from sums over what both photos show: weights;
    levels by channel (first axis) and squares of the one, and of the other; and products.

    whole: the sum of weights wherever they lie, by which the noise counts: little in common is little proof.
    even: 1 where two surfaces without structure are alike, 0 where they prove nothing.
    """
    n, noise = np.maximum(n, 1e-6), NOISE**2 * np.maximum(whole, 1e-6)
    one, other = ss - np.square(s).sum(axis=0) / n, tt - np.square(t).sum(axis=0) / n
    both = st - (s * t).sum(axis=0) / n
    score = (both + even * noise) / np.sqrt((one.clip(0) + noise) * (other.clip(0) + noise))
    return np.where(n < OVERLAP * whole, -1.0, score)


# --- the search over all poses and shifts ---

def scales(source: View, target: View) -> list[float]:
    """By how much the one view may have to be scaled to look like the other: where both objects are whole, by
    the ratio of their sizes; where one is cut off, also by that of their thickness, and of the photos."""
    photos = float(np.sqrt(np.prod(target.damage.shape) / np.prod(source.damage.shape)))
    if source.object is None or target.object is None:
        return [photos]
    found = list[float]()
    own = source.object | (source.damage > 0.5)  # which may have eaten a part of it
    ratios = zip(_sizes(target.object), _sizes(own), strict=True)
    for ratio in [*(float(a / b) for a, b in ratios), photos]:
        if not found or (_cut(source.object) or _cut(target.object)) and all(
                abs(np.log(ratio / other)) > 0.12 for other in found):
            found.append(ratio)
    return found


def _cut(region: np.ndarray) -> bool:
    """Whether a region comes so near to the border that it may go on beyond: its edges are found roughly."""
    return bool(region.sum() > region[3:-3, 3:-3].sum())


def _sizes(region: np.ndarray) -> tuple[float, float, float]:
    """A length for its area, its greatest and its mean thickness."""
    depth = scipy.ndimage.distance_transform_edt(np.pad(region, 1, mode="edge"))[1:-1, 1:-1]
    return float(np.sqrt(region.sum())), float(depth.max()), float(depth[region].mean())


def _windows(source: View, scale: float, angles: np.ndarray) -> np.ndarray:
    """(A,4,W,W): the channels and weights of a view about its damage, turned by each angle."""
    planes = [*source.looks, weights_of(source).sum(axis=0)]
    height, width = source.damage.shape
    step = SIDE / CELLS / scale
    size = (max(1, round(width / step)), max(1, round(height / step)))
    small = [Image.fromarray(plane).resize(size, Image.Resampling.BOX) for plane in planes]
    middle = middle_of(source) * size / (width, height)
    found = []
    for c, s in zip(np.cos(np.radians(angles)), np.sin(np.radians(angles)), strict=True):
        x, y = middle - np.array([[c, s], [-s, c]]) @ (WINDOW / 2, WINDOW / 2)
        found.append([plane.transform((WINDOW, WINDOW), Image.Transform.AFFINE, (c, s, x, -s, c, y),
                                      Image.Resampling.BILINEAR) for plane in small])
    return np.array([[np.asarray(plane) for plane in planes] for planes in found])


def _turned(source: View, scale: float, orientation: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows of all poses of an orientation, their angles and whether they are mirrored."""
    if orientation == "fixed":
        angle = np.array([-FIXED, 0.0, FIXED])
        return _windows(source, scale, angle), angle, np.zeros(3, bool)
    angle = np.arange(0.0, 90.0, TURN)
    quarter = _windows(source, scale, angle)
    window = np.concatenate([np.rot90(quarter, -k, (2, 3)) for k in range(4)])
    angle = np.concatenate([angle + 90.0 * k for k in range(4)])
    return (np.concatenate([window, window[..., ::-1]]), np.concatenate([angle, -angle]),
            np.repeat([False, True], len(angle)))


def search(source: View, target: View, scale: float, orientation: str) -> tuple[Poses, np.ndarray]:
    """Of every angle, and mirrored where the orientation allows it, the best shifts, with their scores."""
    window, angle, mirrored = _turned(source, scale, orientation)
    height, width = target.damage.shape
    size = (max(2, round(width * CELLS / SIDE)), max(2, round(height * CELLS / SIDE)))
    other = np.stack([np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX))
                      for plane in target.looks])
    level = other.mean(axis=(1, 2), keepdims=True)  # the transforms are exacter about 0
    other, levels, weight = other - level, window[:, :-1] - level, window[:, -1:]
    own = np.concatenate([weight, weight * levels, weight * np.square(levels).sum(1, keepdims=True)], axis=1)
    there = np.concatenate([np.ones_like(other[:1]), other, np.square(other).sum(0, keepdims=True)])
    f = scipy.fft.rfft2(own, (PERIOD, PERIOD))
    g = scipy.fft.rfft2(there, (PERIOD, PERIOD)).conj()
    products = (f[:, 1:-1] * g[1:-1]).sum(axis=1, keepdims=True)
    product = np.concatenate([f * g[0], f[:, :1] * g[1:], products], axis=1)
    sums = scipy.fft.irfft2(product, (PERIOD, PERIOD))  # by the target's shift, -t for a window at t
    columns, rows = ((WINDOW // 2 + MARGIN - np.arange(side + 2 * MARGIN)) % PERIOD for side in size)
    sums = sums[..., rows[:, None], columns]
    n, *s, ss, t0, t1, t2, tt, st = sums.transpose(1, 0, 2, 3)
    score = correlation(n, np.stack(s), ss, np.stack([t0, t1, t2]), tt, st,
                        weight.sum(axis=(1, 2, 3))[:, None, None])
    best = (scipy.ndimage.maximum_filter(score, (1, 3, 3)) == score) & (score > -1)
    pose, row, column = np.nonzero(best)
    middle = (np.stack([column, row], axis=1) - MARGIN) * np.array([width / size[0], height / size[1]])
    return Poses(angle[pose], mirrored[pose], np.full(len(pose), scale), middle), score[best]


# --- the comparison of single poses, at a larger size ---

class Match:
    """Compares a view that shows damage with another, at points around the damage and over the object."""

    def __init__(self, source: View, target: View) -> None:
        self.target, self.middle = target, middle_of(source)
        weights = weights_of(source).reshape(2, -1)
        chosen = []
        for weight in weights:
            where = np.flatnonzero(weight > 0.02 * weight.max())
            chosen.append(where[::max(1, 2 * len(where) // POINTS)])
        at, own = np.concatenate(chosen), np.repeat([0, 1], [len(each) for each in chosen])
        weight = np.where(own == np.array([[0], [1]]), weights[:, at], 0)
        total = np.maximum(weight.sum(axis=1, keepdims=True), 1e-6)  # 0 where all of the photo is damage
        self.weight = (weight / total).T.astype(np.float32)  # (P,2)
        self.points = self._points(at, source)
        damage = np.flatnonzero(source.damage.ravel() > 0)
        self.damage = self._points(damage[::max(1, len(damage) // POINTS)], source)
        self.on = None if source.object is None else float(source.object.ravel()[damage].mean())
        # around the damage, and without an object everywhere, two even surfaces are alike
        self.even = np.array([[1.0], [float(source.object is None)]])
        self.other = target.looks.reshape(CHANNELS, -1)
        self.squares = np.square(self.other).sum(axis=0)
        w, levels = self.weight, source.looks.reshape(CHANNELS, -1)[:, at, None]
        self.products = [np.concatenate([w, w * level], axis=1) for level in levels]
        squares = w * np.square(levels).sum(axis=0)
        self.own = np.concatenate([w, *(w * level for level in levels), squares], axis=1)

    def _points(self, at: np.ndarray, source: View) -> np.ndarray:
        """(P,2): pixels of the source, from the middle of the damage."""
        row, column = np.divmod(at, source.damage.shape[1])
        return np.stack([column, row], axis=1) + 0.5 - self.middle

    def _look_up(self, points: np.ndarray, linear: np.ndarray,
                 middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where moved points come to lie: indices (M,P) of the target's pixels; whether they are inside."""
        x, y = np.floor(points @ linear.transpose(0, 2, 1) + middle[:, None]).astype(int).transpose(2, 0, 1)
        height, width = self.target.damage.shape
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return y.clip(0, height - 1) * width + x.clip(0, width - 1), inside

    def scores(self, linear: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """(2,M): the scores around the damage and over the object, of M motions (M,2,2), (M,2)."""
        index, inside = self._look_up(self.points, linear, middle)
        inside = inside.astype(np.float32)
        n, *s, ss = (inside @ self.own).reshape(-1, CHANNELS + 2, 2).transpose(1, 2, 0)
        tt = ((self.squares[index] * inside) @ self.weight).T
        both = np.stack([(level[index] * inside) @ own
                         for level, own in zip(self.other, self.products, strict=True)])
        t, st = both[..., :2].transpose(0, 2, 1), both[..., 2:].sum(axis=0).T
        return correlation(n, np.stack(s), ss, t, tt, st, np.ones((2, 1)), self.even)

    def refine(self, poses: Poses, orientation: str) -> tuple[Poses, np.ndarray]:
        """Each pose moved, turned and scaled a little, to where its scores are best; with these, (2,N)."""
        x = np.column_stack([poses.middle, poses.angle, np.log(poses.scale)])
        step = np.tile([0.5 * SIDE / CELLS, 0.5 * SIDE / CELLS, 0.5 * TURN, 0.06], (len(x), 1))
        moves = np.concatenate([np.zeros((1, 4)), np.eye(4), -np.eye(4)])
        least, most = x[:, 3] - 0.15, x[:, 3] + 0.15
        for _ in range(ROUNDS):
            tries = x[:, None] + moves * step[:, None]
            tries[..., 3] = tries[..., 3].clip(least[:, None], most[:, None])
            if orientation == "fixed":
                tries[..., 2] = tries[..., 2].clip(-FIXED, FIXED)
            flat = tries.reshape(-1, 4)
            both = self.scores(_poses(flat, np.repeat(poses.mirrored, len(moves))).linear(), flat[:, :2])
            both = both.reshape(2, len(x), len(moves))
            best = (2 * both[0] + both[1]).argmax(axis=1)
            x, found = tries[np.arange(len(x)), best], both[:, np.arange(len(x)), best]
            step[best == 0] /= 2
        return _poses(x, poses.mirrored), found

    def fits(self, linear: np.ndarray, middle: np.ndarray) -> np.ndarray:
        """Whether the damage lies inside the target, and on its object where it lay on its own; (M,) bool."""
        index, inside = self._look_up(self.damage, linear, middle)
        fits = inside.mean(axis=1) >= INSIDE
        if self.on is not None and self.target.object is not None:
            on = (self.target.object.ravel()[index] & inside).mean(axis=1)
            fits &= on >= INSIDE * self.on
        return fits


def _poses(x: np.ndarray, mirrored: np.ndarray) -> Poses:
    """Poses from rows of (x, y, angle, logarithm of the scale)."""
    return Poses(x[:, 2], mirrored, np.exp(x[:, 3]), x[:, :2])
