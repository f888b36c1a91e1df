"""The findings as tables for the terminal and as one picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from evaluation.dca import SHARP
from evaluation.image_sets import ALL
from evaluation.numbers import GENERATED, HELD_OUT, RENDERED, Findings, Metric, Number
from evaluation.terms import ABOUT_ROWS, SECTIONS, Section

WIDTHS = {1: 5.2, 2: 12.8}  # of the chart in inches, by its columns
ROWS = tuple(ABOUT_ROWS)
COLOURS = dict(zip(ROWS, ("tab:blue", "tab:cyan", "tab:purple", "tab:green", "tab:orange", "tab:red",
                          "tab:gray"), strict=True))


def cell(found: Number | None, metric: Metric) -> str:
    """A number with its interval; a dash where there is none; in words where it means nothing."""
    def text(value: float) -> str:  # + 0.0, because what rounds to zero should not read -0.0
        return f"{round(value * metric.scale, metric.decimals) + 0.0:.{metric.decimals}f}"

    if found is None or found["value"] is None:
        return "-"
    if "why" in found:
        return "cannot be judged"
    bounds = "" if found["low"] is None else f" [{text(found['low'])}, {text(found['high'])}]"
    return text(found["value"]) + bounds


def shown(section: Section, findings: Findings, fid: str) -> tuple[list[str], list[tuple[Metric, str]]]:
    """The rows of a section, and its columns with their headings: what was measured of generated images."""
    def measured(row: str, metric: Metric) -> bool:
        return any(metric in numbers for numbers in findings.numbers.get(row, {}).values())

    columns = [metric for metric in section.columns if measured(GENERATED, metric)]
    rows = [row for row in ROWS if any(measured(row, metric) for metric in columns)]
    return rows, [(metric, metric.title.format(fid=fid)) for metric in columns]


def reasons(findings: Findings, rows: list[str], columns: list[tuple[Metric, str]],
            groups: list[str]) -> list[str]:
    """Why a table has no number in some places, each reason once with the columns that it concerns."""
    found: dict[str, dict[str, None]] = {}
    for metric, heading in columns:
        for number in (findings.get(row, group, metric) for row in rows for group in groups):
            if number and "why" in number:
                found.setdefault(number["why"], {})[heading] = None
    return [f"- ({', '.join(headings)}): {why}" for why, headings in found.items()]


def table(findings: Findings, groups: list[str], fid: str) -> str:
    """Every section's rows over all damage types, then the generated images of each type."""
    lines = []
    for section in SECTIONS:
        rows, columns = shown(section, findings, fid)
        if not columns:
            continue
        wanted = [(row, ALL) for row in rows]
        wanted += [(GENERATED, group) for group in groups if group != ALL]
        names = [row if group == ALL else f"  {group}" for row, group in wanted]
        cells = [[heading for _, heading in columns]]
        cells += [[cell(findings.get(row, group, metric), metric) for metric, _ in columns]
                  for row, group in wanted]
        widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
        first = max(map(len, names))
        lines += ["", section.title]
        for name, texts in zip(["", *names], cells, strict=True):
            aligned = [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
            lines.append("  ".join([f"  {name:{first}}", *aligned]))
        whys = reasons(findings, rows, columns, [ALL]) + reasons(findings, [GENERATED], columns, groups)
        lines += [f"  {why}" for why in dict.fromkeys(whys)]
    return "\n".join(lines)


def chart(findings: Findings, classes: list[str], fid: str, columns: int = 2) -> Image.Image:
    """DCA, copies, FID at equal numbers and KID of every row and damage type, and confusion matrices.

    They fill rows of `columns`; where the last of the numbers would leave a place empty, it takes that too.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    panels = [metric for metric in (Metric.DCA, Metric.COPIES, Metric.FID_EQUAL, Metric.KID)
              if (found := findings.get(GENERATED, ALL, metric)) and found["value"] is not None]
    matrices = [row for row in (GENERATED, RENDERED, HELD_OUT, SHARP + GENERATED, SHARP + HELD_OUT)
                if row in findings.confusions]
    above, below = (-(-len(plots) // columns) for plots in (panels, matrices))
    height = max(1, above + below)
    figure = Figure(figsize=(WIDTHS[columns], 3.8 * height + 0.4), dpi=100)
    figure.set_layout_engine("constrained", h_pad=0.12)
    canvas = FigureCanvasAgg(figure)
    places = figure.add_gridspec(height, columns)
    for i, metric in enumerate(panels):
        y, x = divmod(i, columns)
        place = places[y, x:] if metric is panels[-1] else places[y, x]
        _dots(figure.add_subplot(place), findings, metric, fid)
    if panels:
        known = {label: dots for axes in figure.axes
                 for dots, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        rows = [row for row in ROWS if row in known]
        figure.legend([known[row] for row in rows], rows, loc="outside upper center", ncols=3 * columns,
                      frameon=False)
    for i, row in enumerate(matrices):
        y, x = divmod(i, columns)
        _matrix(figure.add_subplot(places[above + y, x]), findings.confusions[row], classes, row)
    if not figure.axes:
        figure.text(0.5, 0.5, "There is no number to draw.", ha="center")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _dots(axes: Any, findings: Findings, metric: Metric, fid: str) -> None:
    """One dot with its interval for each row and group."""
    groups = list(findings.numbers[GENERATED])
    rows = [row for row in ROWS if row in findings.numbers]
    for place, row in enumerate(rows):
        found = [(x, number) for x, group in enumerate(groups)
                 if (number := findings.get(row, group, metric)) and "why" not in number]
        if not found:
            continue
        x = [x + 0.64 / len(rows) * (place - (len(rows) - 1) / 2) for x, _ in found]
        value, low, high = (np.array([n["value"] if n[key] is None else n[key] for _, n in found])
                            * metric.scale for key in ("value", "low", "high"))
        axes.errorbar(x, value, np.maximum([value - low, high - value], 0), fmt="o", markersize=5, capsize=3,
                      color=COLOURS[row], label=row)
    axes.set_title(f"{metric.title.format(fid=fid)} ({metric.better} is better)", fontsize=11)
    room = 6 * axes.figure.get_figwidth()  # letters, in half of a wide chart
    names = [f"{group}\n(not judged)" if "why" in (findings.get(GENERATED, group, metric) or {}) else group
             for group in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=9, **_slanted(groups, room))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    if metric.scale == 100:
        axes.set_ylim(-4, 104)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _slanted(names: list[str], most: float) -> dict[str, Any]:
    """How labels below an axis are written: slanted where they have more letters than it has room for."""
    crowded = len(names) * max(map(len, names)) > most
    return {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}


def _matrix(axes: Any, counts: list[list[float]], classes: list[str], title: str) -> None:
    """A confusion matrix with its counts."""
    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(j, i, f"{count:.0f}", ha="center", va="center",
                      color="white" if shares[i, j] > 0.6 else "black")
    axes.set_xticks(range(len(classes)), classes, fontsize=8, **_slanted(classes, 25))
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="classified as", ylabel="asked for" if title.endswith(GENERATED) else "is")
    by = ", by classifiers of sharp photos" if title.startswith(SHARP) else ""
    axes.set_title(title.removeprefix(SHARP) + by, fontsize=11)
