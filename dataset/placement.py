"""A mask moved from its own photo to another, to where its surroundings look like those that it had.

There are no kinds of object: a bottle that looks the same at every turn takes a chip at every angle of its
lip, a cloth takes a stain everywhere, and a bolt takes a scratched head on its head.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dataset.registration import Match, Poses, scales, search
from dataset.views import View, extent_of, middle_of

TOP, DRAWN = 6, 8  # poses that are refined: the best of the search, and some drawn among the good
FLOOR = 0.6  # with an object in sight, a lower score is no agreement
ROUGH = (2.0, 0.05)  # in the search, a good pose misses a perfect score by at most
GOOD = (1.5, 0.02)  # so many times the best one's miss, and so much more; and after refinement
VARIED = (1.5, 0.1)  # and after the jitter
JITTER = 0.05  # in extents of the damage, and in radians
POINTS = 1 << 26  # of a moved mask, looked up at once
RULE = "surroundings"  # this rule's name in samples.jsonl; rows without one are of the rule before it


class Motion(NamedTuple):
    """Source pixels p -> linear (2,2) @ p + shift (2,), in (x, y); score: how well the photos agree, at
    most 1; `about` describes it."""

    linear: np.ndarray
    shift: np.ndarray
    score: float
    about: dict[str, Any]


def place(rng: np.random.Generator, source: View, target: View, orientation: str,
          jitter: float = JITTER) -> Motion | None:
    """A motion drawn among those that put the source's damage where its surroundings look alike; None where
    there is none.

    orientation: "any", or "fixed" for parts that are neither turned (by more than 10 degrees) nor mirrored.
    jitter: how much the damage is shifted (in its extents), turned (in radians), stretched and skewed at
    most, as far as the score stays good.
    """
    found = [search(source, target, scale, orientation) for scale in scales(source, target)]
    poses = Poses(*map(np.concatenate, zip(*(poses for poses, _ in found), strict=True)))
    score = np.concatenate([score for _, score in found])
    if not len(score):
        return None
    drawn = rng.permutation(np.flatnonzero(_is_good(score, score.max(), ROUGH)))[:DRAWN]
    match = Match(source, target)
    chosen = np.concatenate([drawn, np.argsort(-score, kind="stable")[:TOP]])
    poses, both = match.refine(poses.take(chosen), orientation)
    score = both.min(axis=0)
    objects = source.object is not None or target.object is not None
    good = (_is_good(score, score.max(), GOOD) & (score >= (FLOOR if objects else -1))
            & match.fits(poses.linear(), poses.middle))
    if not good.any():
        return None
    k = int(good.argmax())
    linear, middle = _jittered(rng, match, poses.linear()[k], poses.middle[k], both[0, k],
                               jitter * np.array([1, 1, extent_of(source) * poses.scale[k]]))
    linear = linear * (target.factor / source.factor)
    shift = middle * target.factor - linear @ (middle_of(source) * source.factor)
    return Motion(linear, shift, round(float(score[k]), 4), {
        "angle": round(float(poses.angle[k] + 180) % 360 - 180, 2), "flip": bool(poses.mirrored[k]),
        "matrix": np.column_stack([linear, shift]).round(5).tolist()})


def _is_good(score: np.ndarray, best: float, allowed: tuple[float, float]) -> np.ndarray:
    """Which scores are nearly as good as the best one."""
    return 1 - score <= allowed[0] * (1 - best) + allowed[1]


def _jittered(rng: np.random.Generator, match: Match, linear: np.ndarray, middle: np.ndarray, score: float,
              most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A motion changed a little at random, or less, as far as the surroundings still agree."""
    change = rng.uniform(-1, 1, (2, 3)) * most
    for strength in (1.0, 0.5, 0.25):
        moved = linear + strength * change[:, :2] @ linear, middle + strength * change[:, 2]
        there = moved[0][None], moved[1][None]
        if _is_good(match.scores(*there)[0], score, VARIED).all() and match.fits(*there).all():
            return moved
    return linear, middle


def move(mask: np.ndarray, motion: Motion, height: int, width: int) -> np.ndarray:
    """A mask moved into a photo of that size. A pixel is 1 if any of its sampled points is on the damage."""
    scale = np.sqrt(abs(np.linalg.det(motion.linear)))
    k = 1 + int(np.ceil(1 / scale))  # at least two points for each pixel of the mask and of the photo
    back = np.linalg.inv(motion.linear) / k
    offset = -k * back @ motion.shift
    source, moved = Image.fromarray(mask), np.empty((height, width), mask.dtype)
    rows = max(1, POINTS // (width * k * k))  # at once
    for top in range(0, height, rows):
        count = min(rows, height - top)
        start = offset + back[:, 1] * top * k
        coefficients = (*back[0], start[0], *back[1], start[1])
        points = np.asarray(source.transform((width * k, count * k), Image.Transform.AFFINE, coefficients,
                                             Image.Resampling.NEAREST))
        moved[top:top + count] = points.reshape(count, k, width, k).max(axis=(1, 3))
    return moved
