"""The sentences of the verdict, from made-up numbers: one test a branch."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.image_sets import ALL
from evaluation.numbers import (
    GENERATED,
    HELD_OUT,
    PASTED,
    RENDERED,
    Findings,
    Metric,
    Number,
    number,
    share,
    unknown,
)
from evaluation.verdict import BAD, GOOD, UNCLEAR, verdict

FEW = "the classifiers recognise 45 % of 20 images in row held-out real, fewer than 70 %"
DOUBT = {"why": f"dent cannot be judged: {FEW}"}
DAMAGE, COPIES, VARIETY, LAST = 0, 1, 2, -1


def counted(count: int, n: int) -> Number:
    return share(np.arange(n) < count)


def findings(row: str = GENERATED, **by_metric: Number) -> Findings:
    """What is given in place of good news: of all types together, and of each of the two."""
    good = {"DCA": counted(54, 60), "DCA_RATIO": number(0.97, 0.85, 1.1),
            "COPIES": counted(0, 60), "DIVERSITY": number(0.98, 0.9, 1.06)}
    found = Findings()
    found.add(HELD_OUT, ALL, {Metric.COPIES: counted(1, 40)})
    for group, n in ((ALL, 60), ("crack", 30), ("dent", 30)):
        found.add(GENERATED, group, {Metric[name]: value for name, value in good.items()})
        found.add(GENERATED, group, {Metric.N: number(n)})
        found.add(row, group, {Metric[name]: value for name, value in by_metric.items()})
    return found


def said(place: int, found: Findings) -> tuple[str, str]:
    return verdict(found)[place]


def test_good_news() -> None:
    """Neither masks nor cut and paste are spoken of where there are none."""
    sentences = verdict(findings())
    assert [grade for grade, _ in sentences] == [GOOD] * 3
    assert sentences[DAMAGE].text == (
        "The images show the damage asked for about as often as real photos do: it is recognised in "
        "90 % [80, 95] of 60 images, 0.97 [0.85, 1.10] times as often as in real photos.")
    assert sentences[COPIES].text == "None of 60 images is a near copy of a training photo (0 % [0, 6])."
    assert "differ 0.98 [0.92, 1.04] times as much as two real photos" in sentences[VARIETY].text


@pytest.mark.parametrize(("ratio", "grade", "text"), [
    ((0.6, 0.5, 0.7), BAD, "less often than real photos do"),
    ((0.97, 0.5, 1.4), UNCLEAR, "cannot be told yet"),
    ((1.3, 1.1, 1.5), UNCLEAR, "easier to recognise than in real photos, as in copies"),
    ((0.9, 0.85, 0.95), GOOD, "about as often")])
def test_damage(ratio: tuple[float, ...], grade: str, text: str) -> None:
    found = said(DAMAGE, findings(DCA_RATIO=number(*ratio)))
    assert found[0] == grade and text in found[1]


def test_damage_types_that_cannot_be_judged_are_named_and_left_out() -> None:
    found = findings()
    for group in (ALL, "dent"):
        found.add(GENERATED, group, {Metric.DCA: counted(5, 60) | DOUBT,
                                     Metric.DCA_RATIO: number(0.1, 0, 0.2) | DOUBT})
    grade, text = said(DAMAGE, found)
    assert grade == GOOD and "90 % [80, 95] of 30 images of crack, 0.97 [0.85, 1.10]" in text
    assert text.endswith("dent cannot be judged and is left out.")
    found.add(GENERATED, "crack", {Metric.DCA_RATIO: unknown("no real image of it is held out")})
    assert said(DAMAGE, found) == (UNCLEAR, "Whether the images show the damage asked for cannot be judged: "
                                            f"{FEW}.")


def test_types_of_one_classifier_do_not_make_each_others_interval_narrower() -> None:
    found = findings(DCA_RATIO=number(0.9, 0.6, 1.2))
    for group, value in (("dent", number(1.0, 0.7, 1.3)), ("bad", unknown("?")), (ALL, number(0.5) | DOUBT)):
        found.add(GENERATED, group, {Metric.N: number(15), Metric.DCA: counted(12, 15),
                                     Metric.DCA_RATIO: value})
    assert "0.93 [0.63, 1.23] times" in said(DAMAGE, found)[1]  # 30 images of the one, 15 of the other


def test_damage_compared_with_vae_reconstructions() -> None:
    """Which are the ceiling, where there are any."""
    found = findings(RENDERED, DCA=counted(60, 60))
    assert said(DAMAGE, found)[1].endswith("times as often as in real photos redrawn by the base model.")


def test_what_was_not_measured_is_said() -> None:
    found = Findings()
    found.add(GENERATED, ALL, {Metric.N: number(60), Metric.COPIES: unknown("no usual distance")})
    assert [grade for grade, _ in verdict(found)] == [UNCLEAR] * 3
    assert ["was not measured: see the notes." in text for _, text in verdict(found)] == [True, False, True]
    assert said(COPIES, found)[1] == "Whether the images are copies cannot be told: no usual distance."


@pytest.mark.parametrize(("copies", "grade", "text"), [
    ((0, 8), UNCLEAR, "None of 8 images is a near copy of a training photo (0 % [0, 32]), but these are too"),
    ((1, 30), UNCLEAR, "1 of 30 images (3 % [1, 17]) is a near copy of a training photo, and 2 % [0, 13] of"),
    ((30, 60), BAD, "30 of 60 images (50 % [38, 62]) are near copies of a training photo, while 2 % [0, ")])
def test_copies(copies: tuple[int, int], grade: str, text: str) -> None:
    found = said(COPIES, findings(COPIES=counted(*copies)))
    assert found[0] == grade and found[1].startswith(text)


@pytest.mark.parametrize(("diversity", "grade", "text"), [
    ((0.5, 0.4, 0.6), BAD, "less varied than real ones"), ((0.9, 0.5, 1.5), UNCLEAR, "cannot be told yet"),
    ((1.5, 1.3, 1.7), UNCLEAR, "more varied than real ones")])
def test_variety(diversity: tuple[float, ...], grade: str, text: str) -> None:
    found = said(VARIETY, findings(DIVERSITY=number(*diversity)))
    assert found[0] == grade and text in found[1]


def test_variety_is_that_within_the_damage_types() -> None:
    """The type that varies least is named, those with too few images too."""
    found = findings()
    found.add(GENERATED, "dent", {Metric.DIVERSITY: number(0.4, 0.3, 0.5)})
    grade, text = said(VARIETY, found)
    assert grade == BAD and "differ 0.69 [" in text and "least in dent (0.40 [0.30, 0.50])" in text
    found.add(GENERATED, "dent", {Metric.DIVERSITY: unknown("fewer than 3 images on a side")})
    assert said(VARIETY, found)[1].endswith("as two real photos; dent cannot be judged and is left out.")


@pytest.mark.parametrize(("inside", "outside", "grade"), [
    (number(20, 5, 60), number(0.5, 0, 1), GOOD), (number(20, 5, 60), number(8, 3, 12), BAD),
    (number(0, 0, 0), number(0, 0, 0), BAD)])
def test_masks(inside: Number, outside: Number, grade: str) -> None:
    found = said(LAST, findings(CHANGE_INSIDE=inside, CHANGE_OUTSIDE=outside))
    assert found[0] == grade and found[1].startswith("The masks hold:") == (grade == GOOD)
    assert f"by {inside['value']:.1f} ({inside['low']:.1f} to " in found[1] and "of the images" in found[1]


def test_masks_of_one_image_and_of_none() -> None:
    one = said(LAST, findings(CHANGE_INSIDE=number(40.0), CHANGE_OUTSIDE=number(0.1)))
    assert one[0] == GOOD and "changes by 40.0 of 255 levels inside a mask, by 0.1 outside" in one[1]
    missing = verdict(findings(CHANGE_INSIDE=unknown("no"), CHANGE_OUTSIDE=number(0.1)))
    assert not any("asks hold" in sentence.text for sentence in missing)


@pytest.mark.parametrize(("metric", "ours", "theirs", "grade", "text"), [
    (Metric.CROP_KID, (0.1, 0.05, 0.2), (0.5, 0.4, 0.6), GOOD, "better than cut and paste"),
    (Metric.KID, (0.5, 0.4, 0.6), (0.1, 0.05, 0.2), BAD, "Cut and paste is better"),
    (Metric.KID, (0.5, 0.1, 0.6), (0.1, 0.05, 0.2), UNCLEAR, "No difference from cut and paste can be told"),
    (Metric.ACCURACY_GAIN, (0.05, 0.04, 0.06), (0.01, 0, 0.02), GOOD, "gains 5.0 [4.0, 6.0] points of acc"),
    (Metric.IOU_GAIN, (0.01, 0, 0.02), (0.05, 0.04, 0.06), BAD, "0.0, 2.0] points of IoU from them, 5.0 "),
    (Metric.IOU_GAIN, (0.01,), (0.05, 0.04, 0.06), UNCLEAR, "No difference")])
def test_cut_and_paste(metric: Metric, ours: tuple, theirs: tuple, grade: str, text: str) -> None:
    """Gains in training decide where they were measured; that they were not is said."""
    found = findings(PASTED, KID=number(9, 8, 10))
    found.add(PASTED, ALL, {metric: number(*theirs)})
    found.add(GENERATED, ALL, {Metric.KID: number(9, 8, 10), metric: number(*ours)})
    sentence = said(LAST, found)
    assert len(verdict(found)) == 4 and sentence.grade == grade and text in sentence.text
    assert ("--downstream" in sentence.text) == (metric in (Metric.KID, Metric.CROP_KID))


def test_cut_and_paste_without_numbers() -> None:
    found = said(LAST, findings(PASTED, KID=unknown("one side has no images of dent")))
    assert found == (UNCLEAR, "Whether cut and paste is better was not measured: see the notes.")


@pytest.mark.parametrize(("several", "text"), [
    (20, "Damage comes in several places too often: in 50 % [35, 65] of the images of crack, and in "
         "5 % [1, 24] of real photos."), (4, None)])
def test_several_damaged_places(several: int, text: str | None) -> None:
    """Of the types where they can be counted; a difference within the intervals is not spoken of."""
    found = findings()
    found.add(GENERATED, "crack", {Metric.SEVERAL_PLACES: counted(several, 40)})
    found.add(GENERATED, "dent", {Metric.SEVERAL_PLACES: unknown("dent cannot be counted without masks")})
    found.add(HELD_OUT, "crack", {Metric.SEVERAL_PLACES: counted(1, 20)})
    sentences = verdict(found)
    assert len(sentences) == 3 + (text is not None)
    assert text is None or sentences[LAST] == (BAD, text)
    found.add(GENERATED, ALL, {Metric.CHANGE_INSIDE: number(30, 20, 40),
                               Metric.CHANGE_OUTSIDE: number(1, 0, 2)})
    assert "masks hold" in verdict(found)[LAST].text
