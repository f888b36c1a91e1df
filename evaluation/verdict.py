"""The verdict: what the numbers say, in at most five plain sentences.

Damage, copies and variety are always spoken of, also where they were not measured. Masks are left out where
no image was painted on a known photo, and cut and paste where there is none. Several damaged places an image
are spoken of where there are too many, and no masks.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import hypot
from typing import NamedTuple

from evaluation.image_sets import ALL
from evaluation.metrics import wilson
from evaluation.numbers import GENERATED, HELD_OUT, PASTED, RENDERED, Findings, Metric, Number, number
from evaluation.report import cell

GOOD, BAD, UNCLEAR = "good", "bad", "unclear"
ABOUT = 0.8  # of what real photos reach: where all of the interval is above, it is about as much
FEW_COPIES = 0.1  # where the interval of no copies ends above this, there may be too many unseen
HELD = 0.1  # of the change inside a mask: a mask holds where the rest changes by no more


class Sentence(NamedTuple):
    """A sentence, and whether it is good news: GOOD, BAD or UNCLEAR."""

    grade: str
    text: str


def verdict(findings: Findings) -> list[Sentence]:
    """At most five sentences, in the order of what matters first."""
    found = (_damage(findings), _copies(findings), _variety(findings),
             _masks(findings) or _places(findings), _cut_and_paste(findings))
    return [sentence for sentence in found if sentence]


def _sure(found: Number | None) -> bool:
    """Whether a number has a value that means something."""
    return found is not None and found["value"] is not None and "why" not in found


def _types(findings: Findings, *metrics: Metric) -> tuple[list[str], list[str]]:
    """The damage types of which all of these numbers are sure, and the others."""
    types = [group for group in findings.numbers[GENERATED] if group != ALL]
    judged = [name for name in types if all(_sure(findings.get(GENERATED, name, m)) for m in metrics)]
    return judged, [name for name in types if name not in judged]


def _images(findings: Findings, groups: Iterable[str]) -> int:
    """How many generated images there are of these."""
    found = (findings.get(GENERATED, group, Metric.N) for group in groups)
    return sum(int(n["value"]) for n in found if n)


def _why(*found: Number | None) -> str:
    """The first reason why a number is not sure, without the name of what it is a number of."""
    return next((n["why"].rpartition("cannot be judged: ")[2] for n in found if n and "why" in n), "unknown")


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _left_out(names: list[str]) -> str:
    are = "is" if len(names) == 1 else "are"
    return f"; {_listed(names)} cannot be judged and {are} left out" if names else ""


def _mean(found: list[Number], weights: list[int], independent: bool) -> Number:
    """The weighted mean of numbers. Where they are independent, the squares of half widths add up.

    Where they are not, as those of one classifier, the ends are averaged too: never too narrow.
    """
    shares = [weight / sum(weights) for weight in weights]
    mean = sum(n["value"] * share for n, share in zip(found, shares, strict=True))
    if any(n["low"] is None for n in found):
        return number(mean)
    low, high = ([n[end] - n["value"] for n in found] for end in ("low", "high"))
    widths = [[width * share for width, share in zip(side, shares, strict=True)] for side in (low, high)]
    below, above = (hypot(*side) if independent else abs(sum(side)) for side in widths)
    return number(mean, mean - below, mean + above)


def _percent(found: Number, metric: Metric) -> str:
    value, *ends = cell(found, metric).split(" ", 1)
    return " ".join([value, "%", *ends])


def _ends(found: Number) -> tuple[float, float]:
    """The interval; without one it is taken to be endless, for nothing can be told then."""
    return (float("-inf") if found["low"] is None else found["low"],
            float("inf") if found["high"] is None else found["high"])


def _graded(found: Number, alike: str, less: str, more: str, untold: str, rest: str) -> Sentence:
    """One of four openings and the rest, by where the interval of a ratio to real photos lies."""
    low, high = _ends(found)
    if low > 1:
        return Sentence(UNCLEAR, f"{more}: {rest}.")
    if low >= ABOUT:
        return Sentence(GOOD, f"{alike}: {rest}.")
    return Sentence(BAD, f"{less}: {rest}.") if high < 1 else Sentence(UNCLEAR, f"{untold}: {rest}.")


def _damage(findings: Findings) -> Sentence:
    share, ratio = Metric.DCA, Metric.DCA_RATIO
    redrawn = " redrawn by the base model" if findings.get(RENDERED, ALL, share) else ""
    real = f"real photos{redrawn}"
    if not findings.get(GENERATED, ALL, share):
        return Sentence(UNCLEAR, "Whether the images show the damage asked for was not measured: see the "
                                 "notes.")
    judged, others = _types(findings, share, ratio)
    if not judged:
        why = _why(*(findings.get(GENERATED, group, m) for group in (ALL, *others) for m in (share, ratio)))
        return Sentence(UNCLEAR, f"Whether the images show the damage asked for cannot be judged: {why}.")

    def over_types(metric: Metric) -> Number:
        overall = findings.get(GENERATED, ALL, metric)
        if overall and _sure(overall) and not others:
            return overall
        return _mean([findings.numbers[GENERATED][name][metric] for name in judged],
                     [_images(findings, [name]) for name in judged], independent=False)

    n, of = _images(findings, judged), f" of {_listed(judged)}" if others else ""
    return _graded(
        over_types(ratio), f"The images show the damage asked for about as often as {real} do",
        f"The images show the damage asked for less often than {real} do",
        f"The damage asked for is easier to recognise than in {real}, as in copies",
        "Whether the images show the damage asked for often enough cannot be told yet",
        f"it is recognised in {_percent(over_types(share), share)} of {n} images{of}, "
        f"{cell(over_types(ratio), ratio)} times as often as in {real}{_left_out(others)}")


def _copies(findings: Findings) -> Sentence:
    found, real = (findings.get(row, ALL, Metric.COPIES) for row in (GENERATED, HELD_OUT))
    if not found or not _sure(found):
        return Sentence(UNCLEAR, f"Whether the images are copies cannot be told: {_why(found)}.")
    count, n, percent = found["count"], found["n"], _percent(found, Metric.COPIES)
    if not count:
        none = f"None of {n} images is a near copy of a training photo ({percent})"
        return (Sentence(GOOD, f"{none}.") if found["high"] <= FEW_COPIES else
                Sentence(UNCLEAR, f"{none}, but these are too few images to rule copies out."))
    are = "is a near copy" if count == 1 else "are near copies"
    some = f"{count} of {n} images ({percent}) {are} of a training photo"
    if not real or not _sure(real):
        return Sentence(BAD, f"{some}.")
    usual = f"{_percent(real, Metric.COPIES)} of real photos are as near to another one"
    if found["low"] > real["high"]:
        return Sentence(BAD, f"{some}, while {usual}.")
    return Sentence(UNCLEAR, f"{some}, and {usual}: no difference can be told from {n} images.")


def _variety(findings: Findings) -> Sentence:
    """Within the damage types: a generator that draws one picture of each would still vary between them."""
    metric = Metric.DIVERSITY
    if not findings.get(GENERATED, ALL, metric):
        return Sentence(UNCLEAR, "Whether the images are as varied as real ones was not measured: see the "
                                 "notes.")
    judged, others = _types(findings, metric)
    if not judged:
        why = _why(*(findings.get(GENERATED, group, metric) for group in (ALL, *others)))
        return Sentence(UNCLEAR, f"Whether the images are as varied as real ones cannot be told: {why}.")
    found = {name: findings.numbers[GENERATED][name][metric] for name in judged}
    mean = _mean(list(found.values()), [1] * len(judged), independent=True)
    least = min(judged, key=lambda name: found[name]["value"])
    worst = f", least in {least} ({cell(found[least], metric)})" if len(judged) > 1 else ""
    return _graded(
        mean, "The images are about as varied as real ones", "The images are less varied than real ones",
        "The images are more varied than real ones, as faulty ones would be",
        "Whether the images are as varied as real ones cannot be told yet",
        f"two images of the same damage type differ {cell(mean, metric)} times as much as two real photos"
        f"{worst}{_left_out(others)}")


def _masks(findings: Findings) -> Sentence | None:
    inside, outside = (findings.get(GENERATED, ALL, m) for m in (Metric.CHANGE_INSIDE, Metric.CHANGE_OUTSIDE))
    if not inside or not outside or None in (inside["value"], outside["value"]):
        return None

    def levels(found: Number) -> str:
        if found["low"] is None:  # of one image
            return f"{found['value']:.1f}"
        return f"{found['value']:.1f} ({found['low']:.1f} to {found['high']:.1f} in 95 % of the images)"

    rest = f"the photo changes by {levels(inside)} of 255 levels inside a mask, by {levels(outside)} outside"
    if inside["value"] > 0 and outside["value"] <= HELD * inside["value"]:
        return Sentence(GOOD, f"The masks hold: {rest}.")
    return Sentence(BAD, f"The masks do not hold: {rest}.")


def _places(findings: Findings) -> Sentence | None:
    """Over the damage types where they can be counted, generated and real."""
    metric, rows = Metric.SEVERAL_PLACES, (GENERATED, HELD_OUT)
    groups = [name for name in _types(findings, metric)[0] if _sure(findings.get(HELD_OUT, name, metric))]
    if not groups:
        return None
    found = {}
    for row in rows:
        each = [findings.numbers[row][name][metric] for name in groups]
        count, n = (sum(one[key] for one in each) for key in ("count", "n"))
        found[row] = number(count / n, *wilson(count, n))
    ours, real = found[GENERATED], found[HELD_OUT]
    if ours["low"] <= real["high"]:
        return None
    return Sentence(BAD, f"Damage comes in several places too often: in {_percent(ours, metric)} of the "
                         f"images of {_listed(groups)}, and in {_percent(real, metric)} of real photos.")


COMPARED = {  # with cut and paste, in order of preference
    Metric.ACCURACY_GAIN: "a classifier gains {} points of accuracy from them, {} from cut and paste",
    Metric.IOU_GAIN: "a segmenter gains {} points of IoU from them, {} from cut and paste",
    Metric.CROP_KID: "around the damage their distance to real photos (KID x1000, about 0 among these) is "
                     "{}, and {} with cut and paste",
    Metric.KID: "their distance to real photos (KID x1000, about 0 among these) is {}, and {} with cut and "
                "paste",
}


def _cut_and_paste(findings: Findings) -> Sentence | None:
    """By what each adds to training, where it was measured; else by the distance to the real photos."""
    if PASTED not in findings.numbers:
        return None
    rows = (GENERATED, PASTED)
    metric = next((m for m in COMPARED if all(_sure(findings.get(row, ALL, m)) for row in rows)), None)
    if metric is None:
        return Sentence(UNCLEAR, "Whether cut and paste is better was not measured: see the notes.")
    ours, theirs = (findings.numbers[row][ALL][metric] for row in rows)
    rest = COMPARED[metric].format(cell(ours, metric), cell(theirs, metric))
    if metric.better == "lower":
        rest += "; which of both helps training more was not measured (--downstream)"
    (low, high), (low_pasted, high_pasted) = _ends(ours), _ends(theirs)
    above, below = low > high_pasted, high < low_pasted
    if not above and not below:
        return Sentence(UNCLEAR, f"No difference from cut and paste can be told: {rest}.")
    if above == (metric.better == "higher"):
        return Sentence(GOOD, f"The images are better than cut and paste: {rest}.")
    return Sentence(BAD, f"Cut and paste is better: {rest}.")
