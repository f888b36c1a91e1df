"""The tables and numbers of docs/evaluation.md that lie in benchmarks/*.json, row by row."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from benchmarks.recorded import DAMAGES, percent, results

DECAY = 1e-3  # of the evaluation's classifiers


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


def photos() -> Iterable[str]:
    """docs/evaluation.md: each strategy on photographs, drawn with and without --select, and the controls."""
    def cells(numbers: dict[str, Any], titles: str) -> str:
        about = numbers["all"]
        found = []
        for key, scale in (("dca", 100), ("sharp_dca", 100), ("fid_equal", 1)):
            value = about.get(key, {})
            unit = " %" if scale == 100 else ""
            found.append(f"{scale * value['value']:.0f}{unit} [{scale * value['low']:.0f}, "
                         f"{scale * value['high']:.0f}]" if value else "")
        return f"| {titles} | {' | '.join(found)} | {100 * about['copies']['value']:.0f} % |"

    names = {"class": "A", "inpaint": "B1", "control": "B2"}
    rows = results("photos")["rows"]
    for row in rows:
        select = "" if row["level"] == "off" else f", `--select {row['level']}`"
        yield cells(row["numbers"]["generated"], f"{names[row['strategy']]}{select} | {row['kept']} of "
                                                 f"{row['drawn']}")
    for strategy in names:
        row = next(row for row in rows if row["strategy"] == strategy)
        yield cells(row["numbers"]["cut and paste"], f"cut and paste, at {names[strategy]}'s size | ")
    for control, title in (("through the VAE", "training photos through the VAE"),
                           ("held-out real", "held-out photos")):
        yield cells(rows[0]["numbers"][control], f"{title} | ")


def photos_by_type() -> Iterable[str]:
    """What --select strict changes for B1's damage types, with the first seed: kept, and recognised."""
    rows: dict[str, dict[str, Any]] = {}
    for row in results("photos")["rows"]:
        if row["strategy"] == "inpaint":
            rows.setdefault(row["level"], row)
    plain, strict = (rows[level]["numbers"]["generated"] for level in ("off", "strict"))
    kept = rows["strict"]["kept_by_class"]
    shares = {name: [round(100 * numbers[name]["sharp_dca"]["value"]) for numbers in (strict, plain)]
              for name in (*DAMAGES, "good")}
    large, small, dirt, good = shares.values()
    yield f"it keeps {rows['strict']['kept']} of 80, and only {kept['broken_small']} of 20 small breaks"
    yield (f"(large breaks {large[0]} % instead of {large[1]}, small {small[0]} instead of {small[1]}, dirt "
           f"{dirt[0]} instead of {dirt[1]}, undamaged {good[0]} instead of {good[1]};")
    yield f"{rows['strict']['drawn'] / rows['strict']['kept']:.1f} drawings a kept image"
    with_it, without = (numbers["all"]["coverage"]["value"] for numbers in (strict, plain))
    yield f"coverage is {with_it:.2f}, and {without:.2f} without selection"
