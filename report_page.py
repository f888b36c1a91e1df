"""The findings as one HTML page that needs no other file."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image

from measures import GENERATED, Findings
from report import SECTIONS, Column, cell, shown

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222 }
body { max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid #bbb } tr.group td { font-weight: 600; padding-top: .8rem }
tr.generated td { background: #eef4fb } .warning { background: #fff4dd; border-left: 4px solid #e0a020;
padding: .5rem 1rem; margin: .5rem 0 } p.how, dl { color: #555; max-width: 60rem } img { max-width: 100% }
dt { font-weight: 600 } dd { overflow-wrap: anywhere }
/* on a phone tables and pictures are wider than the screen: they scroll, and a table's names stay in sight */
@media (max-width: 40rem) {
  body { font-size: 14px; margin: 1rem auto } img { max-width: none; width: 46rem }
  th, td { padding: .2rem .45rem }
  td:first-child { position: sticky; left: 0; background: white; box-shadow: 4px 0 4px -4px #999 }
  tr.group td { box-shadow: none }
}
"""


def page(findings: Findings, about: dict[str, str], pictures: dict[str, Image.Image], fid: str) -> str:
    """The whole report. about: settings, name to text; pictures: title to picture."""
    parts = ["<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title>",
             "<meta name=viewport content='width=device-width, initial-scale=1'>",
             f"<style>{STYLE}</style><h1>Generated images against real ones</h1>"]
    parts += [f"<p class=warning>{html.escape(text)}</p>" for text in findings.warnings]
    parts += [f"<p class=warning><b>Not measured: {html.escape(name)}.</b> {html.escape(why)}</p>"
              for name, why in findings.missing.items()]
    for section in SECTIONS:
        rows, columns = shown(section, findings, fid)
        if columns:
            parts += [f"<h2>{section.title}</h2><p class=how>{section.text}</p>",
                      _html_table(findings, rows, columns)]
    for title, picture in pictures.items():
        file = io.BytesIO()
        picture.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        parts.append(f"<h2>{html.escape(title)}</h2><div class=scroll><img alt='{html.escape(title)}' "
                     f"src='data:image/png;base64,{data}'></div>")
    parts.append("<h2>How this was measured</h2><p class=how>Brackets: 95 % intervals. Each row beside the "
                 "generated one is a control: real images held out, real damage cut out and pasted onto "
                 "good images, the training images themselves, and with --base as its VAE draws them.</p>"
                 "<dl>")
    parts += [f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in about.items()]
    return "\n".join([*parts, "</dl></html>"]) + "\n"


def _html_table(findings: Findings, rows: list[str], columns: list[tuple[Column, str]]) -> str:
    lines = ["<div class=scroll><table><thead><tr><th>", *(f"<th>{html.escape(h)}" for _, h in columns),
             "</thead>"]
    for group in findings.numbers[GENERATED]:
        if not any(findings.get(row, group, column.name) for row in rows for column, _ in columns):
            continue  # such as the damage of good images
        lines.append(f"<tr class=group><td colspan={len(columns) + 1}>{html.escape(group)}</tr>")
        for row in rows:
            style = " class=generated" if row == GENERATED else ""
            cells = [cell(findings.get(row, group, column.name), column) for column, _ in columns]
            lines.append(f"<tr{style}><td>{row}" + "".join(f"<td>{text}" for text in cells) + "</tr>")
    return "\n".join([*lines, "</table></div>"])
