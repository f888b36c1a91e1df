"""pictures.py: sizes, colours and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import pictures

RED = (255, 0, 0)


def test_tensor_to_image() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, 3.0, -9.0, float("nan")]).expand(3, 2, 6)
    picture = pictures.tensor_to_image(image)
    assert picture.size == (6, 2) and picture.mode == "RGB"
    assert np.asarray(picture)[0, :, 0].tolist() == [0, 128, 255, 255, 0, 0]


def test_outline_surrounds_the_damage_and_leaves_it_visible() -> None:
    mask = np.zeros((64, 64))
    mask[20:30, 20:30] = 1
    drawn = np.asarray(pictures.outline(Image.new("L", (64, 64), 100), mask, RED))
    red = (drawn == RED).all(axis=2)
    assert red[19, 19:31].all() and not red[20:30, 20:30].any() and red.sum() == 12 ** 2 - 10 ** 2
    assert (drawn[~red] == 100).all()


def test_outline_of_nothing_changes_nothing() -> None:
    image = Image.new("RGB", (32, 32), (1, 2, 3))
    assert pictures.outline(image, np.zeros((32, 32))).tobytes() == image.tobytes()


@pytest.mark.parametrize("title", ["", "A title that is much wider than the two small pictures below it"])
def test_grid(title: str) -> None:
    cells = [[Image.new("RGB", (40, 30), RED)] * 2, [Image.new("L", (40, 30), 0)]]
    sheet = pictures.grid(cells, ["first", "second\nrow"], title)
    pixels = np.asarray(sheet)
    assert (pixels == RED).all(axis=2).sum() == 2 * 40 * 30
    assert (pixels[:, :5] == 255).all() and (pixels < 100).all(axis=2).sum() > 40 * 30  # margins, ink
    assert sheet.width > (400 if title else 100)


def test_curves_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    rows = [{"step": s, "loss": 1 / s, "lr": 1e-4} for s in range(1, 50)]
    rows += [{"step": 50, "loss": float("nan"), "lr": 1e-4}, {"step": 51, "preview": "x.png"}]
    sheet = pictures.curves(rows, "a run")
    assert sheet.mode == "RGB" and sheet.width >= 900
    assert len(sheet.getcolors(1 << 20)) > 20


def test_curves_of_a_run_that_has_not_begun() -> None:
    assert pictures.curves([]).size == pictures.curves([{"step": 1, "loss": 0.5, "lr": 1e-4}]).size


def test_smoothing_starts_at_the_first_value() -> None:
    assert pictures._smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
