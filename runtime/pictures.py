"""Grids of labelled images, outlines of masks, loss curves; sheets of them that replace only their like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.PngImagePlugin import PngInfo

from runtime.errors import UserError
from runtime.files import write_atomic

GAP = 4
SHEET = "sheet of this project"  # in a picture's Software field: a later command may replace it
PAPER, INK, LINE = (255, 255, 255), (25, 25, 25), (255, 0, 80)


def tensor_to_image(image: torch.Tensor) -> Image.Image:
    """(3,H,W) in [-1,1] -> an RGB image. Other values are clipped; NaN becomes black."""
    levels = ((image.detach().float().cpu() + 1) * 127.5).nan_to_num(0.0).round().clamp(0, 255)
    return Image.fromarray(levels.byte().permute(1, 2, 0).contiguous().numpy())


def outline(image: Image.Image, mask: np.ndarray, colour: tuple[int, int, int] = LINE) -> Image.Image:
    """`image` in RGB with a line around the damage, where `mask` (H,W) is not 0, drawn just outside of it."""
    drawn = image.convert("RGB")
    drawn.paste(colour, mask=_border(Image.fromarray((mask != 0).astype(np.uint8) * 255)))
    return drawn


def _border(region: Image.Image) -> Image.Image:
    """Where a line just outside of `region` is drawn; both of mode L, with 255 inside."""
    width = max(1, min(region.size) // 96)
    return Image.fromarray(np.array(region.filter(ImageFilter.MaxFilter(2 * width + 1))) - np.array(region))


def small_outline(mask: np.ndarray, side: int, colour: tuple[int, int, int] = LINE) -> Image.Image:
    """A line around the damage, where `mask` (H,W) is not 0; transparent elsewhere; at most `side` pixels."""
    region = Image.fromarray((mask != 0).astype(np.uint8) * 255)
    region.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=None)
    line = _border(region.point(lambda level: 255 * (level > 0)))
    drawn = Image.frombytes("P", line.size, line.point(lambda level: level > 0).tobytes())
    drawn.putpalette([0, 0, 0, *colour])
    drawn.info["transparency"] = 0
    return drawn


def refuse_foreign(path: Path) -> None:
    """Raises UserError where a sheet cannot go to `path`: it names no PNG file, or something is there that no
    command of this project wrote."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--out {path}: a PNG is written; call it {path.with_suffix('.png').name}")
    if not path.exists():
        return
    try:
        with Image.open(path, formats=["PNG"]) as image:
            ours = image.info.get("Software") == SHEET
    except Exception:  # a folder, or no such picture: Pillow raises OSError, SyntaxError, struct.error ...
        ours = False
    if not ours:
        raise UserError(f"{path}: exists, and nothing tells that it is a sheet of an earlier command; give "
                        "another --out, or delete it")


def save_sheet(path: Path, image: Image.Image) -> None:
    """Write a PNG to look at, where `refuse_foreign` has nothing against it."""
    mark = PngInfo()
    mark.add_text("Software", SHEET)
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG", pnginfo=mark))


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    draw = ImageDraw.Draw(Image.new("L", (1, 1)))
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    return int(right - left) + 1, int(bottom - top) + 1


def grid(rows: list[list[Image.Image]], row_labels: list[str], title: str = "") -> Image.Image:
    """Rows of images on white, each with a label to its left, and a title above.

    Each cell has the size of the largest image. Rows may differ in length, and labels may have several lines.
    Text is at least 13 pixels high and grows with the cells.
    """
    cell_width = max(image.width for row in rows for image in row)
    cell_height = max(image.height for row in rows for image in row)
    font = ImageFont.load_default(size=min(28, max(13, cell_height // 10)))
    title_font = ImageFont.load_default(size=min(32, max(15, cell_height // 8)))
    label_width = max(_text_size(label, font)[0] for label in row_labels) + 3 * GAP
    title_width, title_height = _text_size(title, title_font) if title else (0, 0)
    top = title_height + 4 * GAP if title else GAP
    width = max(label_width + max(map(len, rows)) * (cell_width + GAP), title_width + 4 * GAP)
    sheet = Image.new("RGB", (width, top + len(rows) * (cell_height + GAP)), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((2 * GAP, GAP), title, fill=INK, font=title_font)
    for y, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        row_top = top + y * (cell_height + GAP)
        label_top = row_top + (cell_height - _text_size(label, font)[1]) // 2
        draw.multiline_text((2 * GAP, label_top), label, fill=INK, font=font)
        for x, image in enumerate(row):
            sheet.paste(image.convert("RGB"), (label_width + x * (cell_width + GAP), row_top))
    return sheet


def _smooth(values: list[float]) -> list[float]:
    """An exponential moving average over about a twentieth of the run, without bias at its start."""
    decay, total, weight, smooth = 1 - 1 / max(2.0, len(values) / 20), 0.0, 0.0, []
    for value in values:
        total, weight = decay * total + (1 - decay) * value, decay * weight + (1 - decay)
        smooth.append(total / weight)
    return smooth


def _scores(axes: Any, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Plot scores of the previews; the ceiling is dashed."""
    for name in names:
        scores = [(row["step"], row["validation"][name]) for row in rows]
        known = [(step, value) for step, value in scores if value is not None]
        style = {"linestyle": "--", "color": "0.5"} if name == "ceiling" else {"marker": "o"}
        axes.plot([step for step, _ in known], [value for _, value in known], label=name, **style)
    axes.set_ylabel(names[0].upper())
    if len(names) > 1:
        axes.set_ylim(0, 1.05)
        axes.legend(frameon=False)


def curves(rows: list[dict[str, Any]], title: str = "") -> Image.Image:
    """Plot loss (raw and smoothed), learning rate and preview scores over steps. rows: of metrics.jsonl.

    Losses that are not finite are omitted. Needs no display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    validated = [row for row in rows if "validation" in row]
    rows = [row for row in rows if row.get("loss") is not None and np.isfinite(row["loss"])]
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    scored = (("dca", "ceiling"), ("fid",)) if validated else ()
    panels = 2 + len(scored)
    figure = Figure(figsize=(9, 3 + 1.5 * panels), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    above, below, *others = figure.subplots(panels, 1, sharex=True,
                                            gridspec_kw={"height_ratios": [3, 1, 1.5, 1.5][:panels]})
    above.plot(steps, losses, color="0.75", linewidth=0.8, label="loss")
    above.plot(steps, _smooth(losses), color="tab:blue", linewidth=2, label="smoothed")
    if losses:  # outliers must not flatten the curve
        above.set_ylim(0, 1.1 * max(np.percentile(losses, 99), 1e-8))
        above.legend(frameon=False)
    above.set_ylabel("loss")
    below.plot(steps, [row["lr"] for row in rows], color="tab:orange", drawstyle="steps-post")
    below.set(ylabel="learning rate", ylim=(0, None))
    below.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes, names in zip(others, scored, strict=True):
        _scores(axes, validated, names)
    for axes in (above, below, *others):
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    figure.suptitle(title)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
