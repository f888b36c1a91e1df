"""The findings as a table for the terminal and as one picture; which numbers there are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from comparison import Number
from measures import ALL, BY_VAE, COPY, GENERATED, HELD_OUT, PASTED, REAL_ONLY, RENDERED, Findings

ROWS = (GENERATED, RENDERED, HELD_OUT, PASTED, COPY, REAL_ONLY)
COLOURS = dict(zip(ROWS, ("tab:blue", "tab:purple", "tab:green", "tab:orange", "tab:red", "tab:gray"),
                   strict=True))


class Column(NamedTuple):
    """One number: its name in metrics.json, its heading, by what it is multiplied, its decimals."""

    name: str
    heading: str
    scale: float = 1
    decimals: int = 2


class Section(NamedTuple):
    """A table with the question it answers and how to read it."""

    title: str
    columns: tuple[Column, ...]
    text: str


SECTIONS = (
    Section("Do they show the damage that was asked for?",
            (Column("n", "images", decimals=0), Column("dca", "DCA %", 100, 0),
             Column("dca_ratio", "DCA / ceiling"), Column("vae_dca", "DCA, VAE %", 100, 0),
             Column("vae_dca_ratio", "of its ceiling")),
            "DCA: the share of images that a classifier, trained on real images, takes for the damage type "
            "asked for. The ceiling is its share on real images that it was not trained on (row held-out "
            "real): more cannot be expected. Copies of the training set score high too. With --base: row "
            "through the VAE is the training images as the base's VAE draws them, the most a generator on it "
            "can do; DCA, VAE is by classifiers that learnt from real images drawn so, for sharp photos teach"
            " little about soft pictures. Its ceiling is that row's."),
    Section("Are they copies?",
            (Column("copies", "copies %", 100, 0), Column("nearest_feature", "nearest, features"),
             Column("nearest_pixel", "nearest, pixels")),
            "Distance to the nearest training image (in pixels: in any flip or quarter turn of it), over "
            "the usual distance of a real image to its nearest other one; the median. About 1 is as new as "
            "a real image. At half of it, in either space, an image counts as a copy."),
    Section("Are they like the real ones as a whole?",
            (Column("fid", "{fid}", decimals=1), Column("fid_equal", "{fid} at N", decimals=1),
             Column("equal_n", "N", decimals=0), Column("kid", "KID x1000", 1000, 1),
             Column("cmmd", "CMMD x1000", 1000, 2)),
            "Distances to the training images, smaller is nearer. FID of few images is mostly noise and "
            "falls as their number grows: compare only the column at N, where every row has N images "
            "against N, and read it against held-out real, where half of the real images stand against the "
            "other half. KID has no such bias and is 0 on average for images like the real ones; it may be "
            "negative. A copy of the training set has the best FID of all."),
    Section("And around the damage?",
            (Column("crop_fid", "{fid}, crop", decimals=1),
             Column("crop_fid_equal", "{fid} at N, crop", decimals=1),
             Column("crop_kid", "KID x1000, crop", 1000, 1)),
            "The same on the square about each damage: most of a whole picture is background."),
    Section("Are they varied?",
            (Column("precision", "precision"), Column("recall", "recall"), Column("density", "density"),
             Column("coverage", "coverage"), Column("diversity", "diversity")),
            "Precision and density: how much of what is generated lies among real images. Recall and "
            "coverage: how much of the real variety is reached. Diversity: mean distance between two "
            "images of a set over that between two training images; 1 is as varied."),
    Section("Do they help?",
            (Column("accuracy", "accuracy %", 100, 1), Column("accuracy_gain", "gain", 100, 1),
             Column("iou", "IoU %", 100, 1), Column("iou_gain", "gain", 100, 1)),
            "A classifier, and with masks a segmenter, trained on real images and those of the row, tested "
            "on real images that it did not see. Gain: points over training on real images only; an interval "
            "that holds 0 shows no help."),
    Section("Did they change what the mask says, and nothing else?",
            (Column("change_inside", "change inside", decimals=1),
             Column("change_outside", "outside", decimals=1),
             Column("mask_iou", "IoU"), Column("background_psnr", "background dB", decimals=1),
             Column("seam_ratio", "seam")),
            "For images painted on a known one. Change: levels of 255. IoU: of the visibly changed pixels "
            "with the mask. Seam: gradient along the mask's border over the same before. Sharp damage has an "
            "edge of its own, so compare with cut and paste."),
)


def cell(found: Number | None, column: Column) -> str:
    """A number with its interval, or a dash."""
    if found is None or found["value"] is None:
        return "-"
    # + 0.0, for what rounds to zero should not read -0.0
    value, low, high = (None if found[key] is None else
                        f"{round(found[key] * column.scale, column.decimals) + 0.0:.{column.decimals}f}"
                        for key in ("value", "low", "high"))
    return value if low is None else f"{value} [{low}, {high}]"


def shown(section: Section, findings: Findings, fid: str) -> tuple[list[str], list[tuple[Column, str]]]:
    """The columns of a section that were measured of generated images, and the rows that have any of these.

    With the columns' headings. Controls of what generated images have not got say nothing.
    """
    def measured(row: str, column: Column) -> bool:
        return any(column.name in numbers for numbers in findings.numbers.get(row, {}).values())

    columns = [column for column in section.columns if measured(GENERATED, column)]
    rows = [row for row in ROWS if any(measured(row, column) for column in columns)]
    return rows, [(column, column.heading.format(fid=fid)) for column in columns]


def table(findings: Findings, groups: list[str], fid: str) -> str:
    """For the terminal: every row over all damage types, then the generated images of each type."""
    lines = []
    for section in SECTIONS:
        rows, columns = shown(section, findings, fid)
        if not columns:
            continue
        wanted = [(row, ALL) for row in rows]
        wanted += [(GENERATED, group) for group in groups if group != ALL]
        names = [row if group == ALL else f"  {group}" for row, group in wanted]
        cells = [[heading for _, heading in columns]]
        cells += [[cell(findings.get(row, group, column.name), column) for column, _ in columns]
                  for row, group in wanted]
        widths = [max(map(len, texts)) for texts in zip(*cells, strict=True)]
        first = max(map(len, names))
        lines += ["", section.title]
        for name, texts in zip(["", *names], cells, strict=True):
            aligned = [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
            lines.append("  ".join([f"  {name:{first}}", *aligned]))
    return "\n".join(lines)


def chart(findings: Findings, classes: list[str], fid: str) -> Image.Image:
    """DCA, copies, FID at equal numbers and KID of every row and damage type, and confusion matrices."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    panels = [Column("dca", "DCA, % (higher is better)", 100), Column("copies", "copies, %", 100),
              Column("fid_equal", f"{fid} at equal numbers (lower is better)"),
              Column("kid", "KID x1000 (lower is better)", 1000)]
    panels = [column for column in panels if findings.get(GENERATED, ALL, column.name)]
    matrices = [row for row in (GENERATED, HELD_OUT, BY_VAE + GENERATED, BY_VAE + RENDERED)
                if row in findings.confusions]
    height = (len(panels) + 1) // 2 + (len(matrices) + 1) // 2
    figure = Figure(figsize=(12.8, 3.8 * height), dpi=100, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    canvas = FigureCanvasAgg(figure)
    for i, column in enumerate(panels):
        _dots(figure.add_subplot(height, 2, i + 1), findings, column)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ROWS),
                  frameon=False)
    for i, row in enumerate(matrices):
        _matrix(figure.add_subplot(height, 2, 2 * ((len(panels) + 1) // 2) + i + 1), findings.confusions[row],
                classes, row)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _dots(axes: Any, findings: Findings, column: Column) -> None:
    """One dot with its interval for each row and group."""
    groups = list(findings.numbers[GENERATED])
    rows = [row for row in ROWS if row in findings.numbers]
    for place, row in enumerate(rows):
        found = [(x, number) for x, group in enumerate(groups)
                 if (number := findings.get(row, group, column.name)) and number["value"] is not None]
        if not found:
            continue
        x = [x + 0.64 / len(rows) * (place - (len(rows) - 1) / 2) for x, _ in found]
        value, low, high = (np.array([n["value"] if n[key] is None else n[key] for _, n in found])
                            for key in ("value", "low", "high"))
        value, low, high = value * column.scale, low * column.scale, high * column.scale
        axes.errorbar(x, value, np.maximum([value - low, high - value], 0), fmt="o", markersize=5, capsize=3,
                      color=COLOURS[row], label=row)
    axes.set_title(column.heading, fontsize=11)
    axes.set_xticks(range(len(groups)), groups)
    axes.grid(axis="y", color="0.92")
    axes.spines[["top", "right"]].set_visible(False)


def _matrix(axes: Any, counts: list[list[int]], classes: list[str], title: str) -> None:
    """A confusion matrix with its counts."""
    shares = np.array(counts) / np.maximum(1, np.sum(counts, axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            axes.text(j, i, count, ha="center", va="center", color="white" if shares[i, j] > 0.6 else "black")
    axes.set_xticks(range(len(classes)), classes, fontsize=8, rotation=20)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set(xlabel="judged as", ylabel="asked for" if title.endswith(GENERATED) else "is")
    by = ", by judges of what the VAE draws" if title.startswith(BY_VAE) else ", judged"
    axes.set_title(title.removeprefix(BY_VAE) + by, fontsize=11)
