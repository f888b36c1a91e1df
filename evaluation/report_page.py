"""The findings as one HTML page that needs no other file: the verdict, the pictures, then the tables."""

from __future__ import annotations

import base64
import html
import io
import math

from PIL import Image

from evaluation.examples import Example
from evaluation.image_sets import ALL
from evaluation.numbers import COPY, GENERATED, Findings, Metric
from evaluation.report import cell, reasons, shown
from evaluation.terms import ABOUT_ROWS, SECTIONS, Section
from evaluation.verdict import BAD, GOOD, UNCLEAR, Sentence

MARKS = {GOOD: "✓", BAD: "✗", UNCLEAR: "?"}
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --soft: #5a5a5a; --line: #c8c8c8;
  --row: #2b7bd01c; --shade: #0005; --good: #1a7f37; --bad: #c4232b; --unclear: #9a6700 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e4e4e4; --soft: #a5a9ae; --line: #484c52; --row: #4c97e82b;
  --shade: #fff5; --good: #4ac26b; --bad: #ff7b72; --unclear: #d4a72c }
  .chart { filter: invert(.91) hue-rotate(180deg) } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1rem 0 .3rem } .soft, .why, dd, figcaption { color: var(--soft) }
.verdict { list-style: none; padding: 0 } .verdict li { padding: .45rem 0 .45rem 2.2rem; position: relative;
  border-top: 1px solid var(--line) } .verdict b { position: absolute; left: .5rem }
.good b { color: var(--good) } .bad b { color: var(--bad) } .unclear b { color: var(--unclear) }
.examples { display: grid; gap: .8rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)) }
.example { display: grid; grid-template-columns: repeat(3, 1fr); gap: 4px; max-width: 40rem }
figure { margin: 0 } img { display: block; width: 100%; height: auto } figcaption { font-size: .8rem }
.note { border-left: 4px solid var(--unclear); padding: .1rem .8rem; margin: .7rem 0; max-width: 60rem;
  overflow-wrap: anywhere }
details { border-top: 1px solid var(--line); padding: .5rem 0 } summary { cursor: pointer; font-weight: 600 }
dl { font-size: .9rem; margin: .6rem 0 } dt { font-weight: 600; float: left; clear: left;
  margin-right: .5rem } dd { margin: 0 0 .15rem; overflow-wrap: anywhere }
.scroll { overflow-x: auto; background: /* a shade at each edge behind which there is more */
  linear-gradient(to right, var(--paper) 30%, transparent) 0 0 / 40px 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) 100% 0 / 40px 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) 0 0 / 14px 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) 100% 0 / 14px 100% no-repeat scroll }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; min-width: 100% }
th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 2px solid var(--line) } .group td { font-weight: 600; padding-top: .8rem }
.generated td { background: var(--row) } .why { font-size: .9rem; margin: .3rem 0; max-width: 60rem }
@media (max-width: 40rem) { /* a table's names stay in sight */
  body { font-size: 15px; margin: 1rem auto } th, td { padding: .2rem .45rem }
  td:first-child { position: sticky; left: 0; background: var(--paper) }
  .generated td:first-child { background: linear-gradient(var(--row), var(--row)) var(--paper) } }
"""


def page(findings: Findings, sentences: list[Sentence], pictures: dict[str, list[Example]],
         charts: tuple[Image.Image, Image.Image], about: dict[str, str], fid: str) -> str:
    """The whole report. pictures: examples by class. charts: for wide screens and for phones. about:
    settings, name to text."""
    notes = [f"<p class=note>{html.escape(text)}</p>" for text in findings.warnings]
    notes += [f"<p class=note><b>Not measured: {html.escape(name)}.</b> {html.escape(why)}</p>"
              for name, why in findings.missing.items()]
    rows = {row: text for row, text in ABOUT_ROWS.items() if row in findings.numbers}
    return "\n".join([
        "<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<style>{STYLE}</style><h1>Generated images against real ones</h1>",
        _verdict(findings, sentences, len(notes)),
        "<h2>Real, generated, and the training photo nearest to the generated image</h2>",
        "<p class=soft>The first generated image of each type is the one nearest to a training photo; the "
        "others are not selected. The number is that distance: 1 is usual between real photos, and up to 0.5 "
        "it is called a copy.</p>",
        *(_examples(name, found) for name, found in pictures.items()),
        "<h2 id=notes>Notes</h2>" if notes else "", *notes,
        "<h2>The numbers</h2><p class=soft>The generated images, and beside them controls that are measured "
        "alike:</p>", _terms(rows), *(_section(findings, section, fid) for section in SECTIONS),
        "<details><summary>All numbers as a picture</summary>", _chart(*charts), "</details>",
        "<details><summary>How this was measured</summary>", _terms(about), "</details></html>"]) + "\n"


def _verdict(findings: Findings, sentences: list[Sentence], notes: int) -> str:
    drawn, training = (findings.get(row, ALL, Metric.N) for row in (GENERATED, COPY))
    parts = [f"<p class=soft>{drawn['value']:.0f} generated images against {training['value']:.0f} training "
             "photos</p>" if drawn and training else "", "<ul class=verdict>"]
    parts += [f"<li class={grade}><b title={grade}>{MARKS[grade]}</b>{html.escape(text)}"
              for grade, text in sentences]
    more = f" <a href=#notes>{notes} note{'s' * (notes > 1)}</a> on these numbers below." if notes else ""
    return "\n".join([*parts, "</ul><p class=soft>In brackets: the 95 % interval. The true number may be "
                      f"anywhere in it.{more}</p>"])


def _examples(name: str, found: list[Example]) -> str:
    """The pictures of one class: three to an example, which fill the page's width."""
    parts = [f"<h3>{html.escape(name)}</h3><div class=examples>"]
    for example in found:
        ratio = "" if math.isnan(example.ratio) else f": {example.ratio:.2f}"
        captions = "real", "generated", f"nearest{ratio}"
        cells = (f"<figure>{_img(picture, f'{name}, {caption}', 'JPEG')}<figcaption>{caption}</figcaption>"
                 "</figure>" for picture, caption in zip(example[:3], captions, strict=True))
        parts.append(f"<div class=example>{''.join(cells)}</div>")
    return "\n".join([*parts, "</div>"])


def _data(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _img(picture: Image.Image, alt: str, kind: str) -> str:
    return (f"<img alt='{html.escape(alt)}' width={picture.width} height={picture.height} "
            f"src='{_data(picture, kind)}'>")


def _chart(wide: Image.Image, narrow: Image.Image) -> str:
    return (f"<picture class=chart><source media='(max-width: 40rem)' srcset='{_data(narrow, 'PNG')}'>"
            f"{_img(wide, 'all numbers and confusion matrices', 'PNG')}</picture>")


def _terms(terms: dict[str, str]) -> str:
    """A list of terms, each with one line."""
    return "\n".join(["<dl>", *(f"<dt>{html.escape(term)}</dt><dd>{html.escape(text)}</dd>"
                                for term, text in terms.items()), "</dl>"])


def _section(findings: Findings, section: Section, fid: str) -> str:
    """A folded table with the meaning of its columns above and the reasons for what it lacks below."""
    rows, columns = shown(section, findings, fid)
    if not columns:
        return ""
    terms = {heading: section.columns[metric].format(fid=fid) for metric, heading in columns}
    whys = reasons(findings, rows, columns, list(findings.numbers[GENERATED]))
    return "\n".join([f"<details><summary>{section.title}</summary>", _terms(terms),
                      f"<p class=soft>{section.text}</p>", _table(findings, rows, columns),
                      *(f"<p class=why>{html.escape(why)}</p>" for why in whys), "</details>"])


def _table(findings: Findings, rows: list[str], columns: list[tuple[Metric, str]]) -> str:
    lines = ["<div class=scroll><table><thead><tr><th>", *(f"<th>{html.escape(h)}" for _, h in columns),
             "</thead>"]
    for group in findings.numbers[GENERATED]:
        if not any(findings.get(row, group, metric) for row in rows for metric, _ in columns):
            continue  # such as the damage of good images
        lines.append(f"<tr class=group><td>{html.escape(group)}<td colspan={len(columns)}></tr>")
        for row in rows:
            style = " class=generated" if row == GENERATED else ""
            cells = [cell(findings.get(row, group, metric), metric) for metric, _ in columns]
            lines.append(f"<tr{style}><td>{row}" + "".join(f"<td>{text}" for text in cells) + "</tr>")
    return "\n".join([*lines, "</table></div>"])
