"""The report's page and chart from made-up numbers, and which pictures it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from trees import make_product

from dataset.image_files import read_image
from evaluation.examples import SHOWN, SIDE, Example, examples
from evaluation.image_sets import ALL, load_sets
from evaluation.numbers import COPY, GENERATED, HELD_OUT, Findings, Metric, number, share, unknown
from evaluation.report import chart
from evaluation.report_page import page
from evaluation.terms import ABOUT_ROWS, SECTIONS
from evaluation.verdict import verdict

CLASSES = ["a<b", "good"]


def made_up() -> Findings:
    """Every metric of three rows, and what is wrong with them."""
    found = Findings(warnings=["be <careful>"], missing={"clip": "no weights"})
    for row in (GENERATED, HELD_OUT, COPY):
        for group in (ALL, *CLASSES):
            found.add(row, group, {metric: number(0.5, 0.4, 0.7) for metric in Metric})
            found.add(row, group, {Metric.COPIES: share(np.arange(9) < 3), Metric.CMMD: unknown("too few")})
    found.confusions = {row: [[1, 2], [3, 4]] for row in (GENERATED, HELD_OUT)}
    return found


def test_the_page() -> None:
    """Verdict, pictures, notes, and below them folded tables, whose rows and columns are explained."""
    found, image = made_up(), Image.new("RGB", (8, 8))
    sentences = verdict(found)
    pictures = {name: [Example(image, image, image, 0.25), Example(image, image, image, float("nan"))]
                for name in CLASSES}
    text = page(found, sentences, pictures, (image, image), {"settings": "x<y"}, "FID-x")
    places = [text.index(part) for part in ("<ul class=verdict>", "nearest: 0.25", "be &lt;careful&gt;",
                                            "Not measured: clip", "<details>", "<table>", "x&lt;y")]
    assert places == sorted(places) and text.count("class=example>") == 4
    assert text.count("<li class=") == len(sentences) == 4 and "2 notes" in text
    assert text.count("<details>") == text.count("</details>") == len(SECTIONS) + 2
    assert "<details open" not in text
    for heading in re.findall("<th>(.+?)(?=<th>|\n|</)", text):
        assert f"<dt>{heading}</dt>" in text, heading
    for row in ABOUT_ROWS:
        assert text.count(f"<dt>{row}</dt>") == (row in found.numbers), row
    assert "a&lt;b" in text and "a<b" not in text and "{fid}" not in text
    assert not re.search(r"(src|href)=.?(http|/)", text)


def test_every_number_has_its_explanation_in_one_table() -> None:
    explained = [metric for section in SECTIONS for metric in section.columns]
    assert sorted(metric.key for metric in explained) == sorted(metric.key for metric in Metric)


def test_the_chart_fills_its_rows() -> None:
    """Five plots with intervals and two matrices: the fifth takes its row alone, and none has a blank end."""
    found = made_up()
    wide, narrow = (np.asarray(chart(found, CLASSES, "FID", columns)) for columns in (2, 1))
    assert wide.shape[1] > 2 * narrow.shape[1] and narrow.shape[0] > 1.5 * wide.shape[0]
    for place in (*np.array_split(wide[:, 800:], 4), narrow[-200:]):
        assert (place < 128).any()
    nothing = np.asarray(chart(Findings(numbers={GENERATED: {ALL: {}}}), CLASSES, "FID"))
    assert (nothing < 128).any() and len(nothing) < 500


def test_the_pictures(tmp_path: Path) -> None:
    """The nearest to a training image first, beside that one; then the first others, whatever their ratio."""
    for name, count in (("real", 3), ("fake", SHOWN + 2)):
        make_product(tmp_path / name, ("crack", "good"), count=count, seed=len(name) + count)
    sets = load_sets([str(tmp_path / "real")], str(tmp_path / "fake"), [], None, False)
    n = len(sets.fake)
    ratio, index = np.full(n, 2.0), np.arange(n) % len(sets.reference)
    ratio[3] = 0.5
    far = np.full(n, 3.0), np.zeros(n, int)
    far[0][1] = np.nan
    found = examples(sets, {"feature": far, "pixel": (ratio, index)})
    assert list(found) == ["crack", "good"] and all(len(row) == SHOWN for row in found.values())
    crack = found["crack"]
    assert [example.ratio for example in crack] == [0.5, 2, 2, 2]
    order = [3, 0, 1, 2]

    def same(picture: Image.Image, path: Path) -> bool:
        known = Image.fromarray(read_image(path)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        difference = np.abs(np.asarray(picture, float) - np.asarray(known))
        return picture.size == (SIDE, SIDE) and bool(difference.mean() < 8)

    for k, (example, i) in enumerate(zip(crack, order, strict=True)):
        assert same(example.generated, sets.fake.photos[i].image)
        assert same(example.nearest, sets.reference.photos[index[i]].image)
        assert same(example.real, sets.reference.photos[k % 3].image)
