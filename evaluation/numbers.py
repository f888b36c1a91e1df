"""Which numbers there are and how each is shown. A number is a value with its 95 % interval, or the reason
why there is none: a number that could not be wrong says nothing, so it is not given."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Any

import numpy as np

from evaluation.metrics import wilson

GENERATED, HELD_OUT, COPY, PASTED = "generated", "held-out real", "copy of training", "cut and paste"
BEFORE = "before selection"  # the first drawings of images of which some were thrown away
RENDERED = "through the VAE"  # the training images after a pass through the base's VAE
REAL_ONLY = "real only"  # downstream training without additional images
Number = dict[str, Any]


@unique
class Metric(Enum):
    """A kind of number: its column's title, where {fid} is the name of the Frechet distance; by what its
    values are multiplied in tables, and their decimals; whether "higher" or "lower" is better, or "" where
    neither is."""

    N = "images", 1, 0
    DCA = "DCA %", 100, 0, "higher"
    DCA_RATIO = "DCA / ceiling"
    SHARP_DCA = "DCA, sharp %", 100, 0, "higher"
    SHARP_DCA_RATIO = "of its ceiling"
    PLACES = "damaged places"
    SEVERAL_PLACES = "several %", 100, 0
    COPIES = "copies %", 100, 0, "lower"
    NEAREST_FEATURE = "nearest, features"
    NEAREST_PIXEL = "nearest, pixels"
    FID = "{fid}", 1, 1, "lower"
    FID_EQUAL = "{fid} at N", 1, 1, "lower"
    EQUAL_N = "N", 1, 0
    KID = "KID x1000", 1000, 1, "lower"
    CMMD = "CMMD x1000", 1000, 2, "lower"
    CROP_FID = "{fid}, crop", 1, 1, "lower"
    CROP_FID_EQUAL = "{fid} at N, crop", 1, 1, "lower"
    CROP_KID = "KID x1000, crop", 1000, 1, "lower"
    PRECISION = "precision"
    RECALL = "recall"
    DENSITY = "density"
    COVERAGE = "coverage"
    DIVERSITY = "diversity"
    ACCURACY = "accuracy %", 100, 1, "higher"
    ACCURACY_GAIN = "gain", 100, 1, "higher"
    IOU = "IoU %", 100, 1, "higher"
    IOU_GAIN = "IoU gain", 100, 1, "higher"
    CHANGE_INSIDE = "change inside", 1, 1
    CHANGE_OUTSIDE = "outside", 1, 1, "lower"
    MASK_IOU = "IoU", 1, 2, "higher"
    BACKGROUND_PSNR = "background dB", 1, 1, "higher"
    SEAM_RATIO = "seam"

    def __init__(self, title: str, scale: float = 1, decimals: int = 2, better: str = "") -> None:
        self.key = self.name.lower()  # in metrics.json
        self.title, self.scale, self.decimals, self.better = title, scale, decimals, better


def number(value: float, low: float | None = None, high: float | None = None) -> Number:
    return {"value": value, "low": low, "high": high}


def unknown(why: str) -> Number:
    """A number that cannot be given, and why. A number with a value and a reason is known and means nothing.
    """
    return {"value": None, "low": None, "high": None, "why": why}


def share(which: np.ndarray) -> Number:
    """The share of true ones among booleans (N,), with Wilson's interval and its counts."""
    count, n = int(which.sum()), len(which)
    return {**number(count / n, *wilson(count, n)), "count": count, "n": n}


def mean_of(values: list[float | None], why: str) -> Number:
    """The mean of repeated measurements and the range of 95 % of them; of a single one there is no range.

    why: the reason where all are None.
    """
    known = [value for value in values if value is not None]
    if not known:
        return unknown(why)
    bounds: Any = np.quantile(known, [0.025, 0.975]) if len(known) > 1 else []
    return number(float(np.mean(known)), *map(float, bounds))


@dataclass
class Findings:
    """numbers[row][group][metric]; confusion matrices by row; what is missing and why; warnings."""

    numbers: dict[str, dict[str, dict[Metric, Number]]] = field(default_factory=dict)
    confusions: dict[str, list[list[float]]] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, row: str, group: str, numbers: dict[Metric, Number]) -> None:
        self.numbers.setdefault(row, {}).setdefault(group, {}).update(numbers)

    def get(self, row: str, group: str, metric: Metric) -> Number | None:
        return self.numbers.get(row, {}).get(group, {}).get(metric)

    def as_json(self) -> dict[str, Any]:
        """All of it, metrics by their keys."""
        numbers = {row: {group: {metric.key: value for metric, value in found.items()}
                         for group, found in groups.items()} for row, groups in self.numbers.items()}
        return vars(self) | {"numbers": numbers}
