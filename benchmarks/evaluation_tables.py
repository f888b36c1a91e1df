"""The tables and numbers of docs/evaluation.md that lie in benchmarks/*.json, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from benchmarks.recorded import DAMAGES, percent, results

DECAY = 1e-3  # of the evaluation's classifiers
STRATEGIES = {"class": "A", "inpaint": "B1", "control": "B2"}


def judges() -> Iterable[str]:
    """docs/evaluation.md: the features of the classifiers, on three kinds of pictures."""
    rows = results("judges")["rows"]
    places = ("photos", "through the VAE", "fabric")
    titles = {"strides 8 and 16": "strides 8 and 16 (used)", "last": "last map", "both": "both",
              "nested": "chosen in each training part (nested)"}
    for features, title in titles.items():
        cells = []
        for place in places:
            found = rows[f"efficientnet_lite0, {place}"]
            key = features if features == "nested" else f"{features}, decay {DECAY:g}"
            right, images = found["right"][key], found["images"]
            mean = 100 * sum(right) / (len(right) * images)
            cells.append(f"{mean:.1f} ({percent(min(right) / images)} to {percent(max(right) / images)})")
        yield f"| {title} | {' | '.join(cells)} |"


def coverage() -> Iterable[str]:
    """docs/evaluation.md: how often the intervals of DCA hold the truth."""
    for row in results("coverage")["settings"]:
        share = f"{100 * row['towards']:.0f} %"
        towards = f"{share} towards another type" if row["towards"] else "like the photos"
        varied = f", {row['varied']:g} times as varied" if row["varied"] != 1 else ""
        yield (f"| {row['photos']} | {row['images']} | {towards}{varied} | {100 * row['truth']:.0f} % | "
               + " | ".join(f"{percent(row[key])} %" for key in ("held", "held_by_images_alone", "held_real"))
               + " |")


def places() -> Iterable[str]:
    """Of how many real photos the damaged places are counted right, for each damage type and product."""
    def cell(found: dict[str, list[int]] | str) -> str:
        if isinstance(found, str):
            of, kind, right = re.match(r"of (\d+) (.*?) (\d+) are", found).groups()  # type: ignore[union-attr]
            return f"no number: {right} of {of} {kind.removeprefix('photos ').removesuffix(' damaged place')}"
        return ", ".join(f"{right} of {of}" for right, of in found.values())

    products = results("places")["products"].values()
    for damage in DAMAGES:
        yield f"| {damage} | {' | '.join(cell(found[damage]) for found in products)} |"


def best_weights() -> Iterable[str]:
    """The last weights against those of the best preview, over three seeds."""
    right: dict[str, int] = {}
    for row in results("weights")["rows"]:
        right[row["arm"]] = right.get(row["arm"], 0) + row["correct"]
    yield "the last ones have {} of 300 images right and the best previews' {}".format(*right.values())


def of_photos(strategy: str, level: str) -> list[dict[str, Any]]:
    """The rows of one strategy and level of --select, one a seed."""
    return [row for row in results("photos")["rows"] if (row["strategy"], row["level"]) == (strategy, level)]


def mean(rows: list[dict[str, Any]], control: str, group: str, key: str) -> float:
    """A number's mean over the seeds."""
    values = [row["numbers"][control][group][key]["value"] for row in rows]
    return sum(values) / len(values)


def photos_row(rows: list[dict[str, Any]], control: str, titles: str) -> str:
    """A row of `photos`: of several seeds the mean and each, of one its interval; and the copies of all."""
    found = []
    for key, scale, unit in (("dca", 100, " %"), ("sharp_dca", 100, " %"), ("coverage", 100, " %"),
                             ("fid_equal", 1, "")):
        found_in = (row["numbers"][control]["all"] for row in rows)
        each = [numbers[key] for numbers in found_in if key in numbers]
        values = [f"{scale * value['value']:.0f}" for value in each]
        spread = f" ({', '.join(values)})" if len(values) > 1 else ""
        if len(values) == 1 and each[0]["low"] is not None:
            spread = f" [{scale * each[0]['low']:.0f}, {scale * each[0]['high']:.0f}]"
        found.append(f"{scale * mean(rows, control, 'all', key):.0f}{unit}{spread}" if each else "")
    copied = sum(row["numbers"][control]["all"]["copies"]["count"] for row in rows)
    return f"| {titles} | {' | '.join(found)} | {copied} |"


def photos() -> Iterable[str]:
    """docs/evaluation.md: each strategy on photographs, drawn with and without --select, and the controls."""
    for strategy, name in STRATEGIES.items():
        for level, title in (("off", ""), ("light", ", `--select light`"), ("strict", ", `--select strict`")):
            if rows := of_photos(strategy, level):
                kept, drawn = (sum(row[key] for row in rows) for key in ("kept", "drawn"))
                yield photos_row(rows, "generated", f"{name}{title} | {kept} of {drawn}")
    for strategy in ("class", "inpaint"):
        yield photos_row(of_photos(strategy, "off"), "cut and paste",
                    f"cut and paste, at {STRATEGIES[strategy]}'s size | ")
    for control, title in (("through the VAE", "training photos through the VAE"),
                           ("held-out real", "held-out photos")):
        yield photos_row(of_photos("class", "off"), control, f"{title} | ")


def photos_by_type() -> Iterable[str]:
    """What --select strict changes for B1's damage types: kept, and recognised; means over the seeds."""
    plain, strict = (of_photos("inpaint", level) for level in ("off", "strict"))
    kept, drawn, asked = (sum(row[key] for row in rows) for rows, key in
                          ((strict, "kept"), (strict, "drawn"), (plain, "kept")))
    small = [row["kept_by_class"]["broken_small"] for row in strict]
    yield f"it keeps {kept} of {asked}, and {', '.join(map(str, small))} of 20 small breaks"
    shares = [[round(100 * mean(rows, "generated", name, "sharp_dca")) for rows in (strict, plain)]
              for name in (*DAMAGES, "good")]
    yield ("(large breaks {} % instead of {}, small {} instead of {}, dirt {} instead of {}, undamaged {} "
           "instead of {})".format(*sum(shares, [])))
    yield f"{drawn / kept:.1f} drawings a kept image"
    with_it, without = (mean(rows, "generated", "all", "coverage") for rows in (strict, plain))
    yield f"coverage is {with_it:.2f}, and {without:.2f} without selection"


def photos_downstream() -> Iterable[str]:
    """docs/evaluation.md: what B1's images add to training."""
    plain, strict = ([row for row in of_photos("inpaint", level) if "downstream" in row]
                     for level in ("off", "strict"))
    for rows, row, title in ((plain, "real only", "none"), (plain, "generated", "B1"),
                             (strict, "generated", "B1, `--select strict`"),
                             (plain, "cut and paste", "cut and paste")):
        found = [found["downstream"][row][key] for found in rows for key in ("accuracy", "iou")]
        cells = [f"{100 * value['value']:.0f} % [{100 * value['low']:.0f}, {100 * value['high']:.0f}]"
                 for value in found]
        yield f"| {title} | {' | '.join(cells)} |"
