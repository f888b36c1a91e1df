"""paste.py: what is painted stays inside its seam; photos of any shape and colour go in and come out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from trees import picture

from dataset.masks import MARGIN, grow
from dataset.paste import View, box_for, changes, make_view, paste
from runtime.errors import UserError


def seen(photo: np.ndarray, mask: np.ndarray, resolution: int, name: str, view: str = "whole", *,
         whole: bool = False) -> View:
    """The view of a mask on a photo."""
    box = box_for(mask, view, resolution, np.random.default_rng(0), whole=whole)
    return make_view(photo, mask, box, resolution, name, whole=whole)


def spot(height: int, width: int, y: int, x: int, radius: int = 3) -> np.ndarray:
    """A disc in a mask (H,W)."""
    rows, columns = np.ogrid[:height, :width]
    return ((rows - y) ** 2 + (columns - x) ** 2 <= radius**2).astype(np.uint8)


@given(height=st.integers(65, 400), width=st.integers(65, 400), y=st.floats(0, 1), x=st.floats(0, 1),
       close=st.booleans(), grey=st.booleans())
@settings(max_examples=25, deadline=None)
def test_beyond_the_seam_every_pixel_is_the_photos(height: int, width: int, y: float, x: float, close: bool,
                                                   grey: bool) -> None:
    photo = picture(0, (width, height))
    if grey:
        photo = photo[..., :1].repeat(3, axis=2)
    mask = spot(height, width, int(y * (height - 1)), int(x * (width - 1)))
    view = seen(photo, mask, 64, "a mask", "close" if close else "whole")
    top, left, side = view.box
    assert 0 <= top <= height - side and 0 <= left <= width - side
    assert view.image.shape == (64, 64, 3) and view.hole.shape == (64, 64) and view.mask.any()
    painted = 255 - picture(1, (64, 64))
    result = np.asarray(paste(photo.copy(), view, painted))
    assert result.shape == ((height, width) if grey else photo.shape)
    result = result[..., None].repeat(3, axis=2) if grey else result
    beyond = distance_transform_edt(view.mask == 0) >= max(1, MARGIN * side)
    assert (result[beyond] == photo[beyond]).all()
    assert (result[view.mask > 0] != photo[view.mask > 0]).mean() > 0.5


def test_the_hole_covers_all_that_is_pasted() -> None:
    photo, mask = picture(0, (300, 300)), spot(300, 300, 120, 200, 11)
    view = seen(photo, mask, 128, "a mask")
    changed = (np.asarray(paste(photo.copy(), view, 255 - view.image)) != photo).any(axis=2)
    rows, columns = (np.indices((300, 300)) + 0.5) * 128 / 300
    near = grow(view.hole, 1)  # but for the model's own pixels, which are larger
    assert near[rows.astype(int), columns.astype(int)][changed].all() and changed.sum() >= mask.sum()


def test_a_close_view_is_nearer_but_not_too_near() -> None:
    photo, mask = picture(0, (640, 480)), spot(480, 640, 60, 600, 10)
    whole, close = (seen(photo, mask, 64, "a mask", view) for view in ("whole", "close"))
    assert whole.box[2] == 480 and 32 <= close.box[2] <= 84 and close.cells > whole.cells
    assert 182 <= seen(photo, spot(480, 640, 240, 320, 60), 64, "a mask", "close").box[2] <= 480
    two = np.maximum(mask, spot(480, 640, 400, 30, 10))  # one place, drawn; of a given mask all of it
    assert seen(photo, two, 64, "two", "close").mask.sum() == mask.sum()
    with pytest.raises(UserError, match="two: its damage does not fit"):
        seen(photo, two, 64, "two", "close", whole=True)


def test_damage_beyond_the_square() -> None:
    photo, mask = picture(0, (300, 100)), np.zeros((100, 300), np.uint8)
    mask[50, 20:280] = 1
    assert 90 <= seen(photo, mask, 64, "long.png").mask.sum() <= 100  # a bank's mask is cut
    with pytest.raises(UserError, match=r"long\.png: its damage does not fit .* 100 pixels"):
        seen(photo, mask, 64, "long.png", whole=True)  # a given one is not
    ends = np.zeros_like(mask)
    ends[50, [2, 297]] = 1
    assert seen(photo, ends, 64, "ends.png").mask.sum() == 1  # one end, not the empty middle


def test_without_a_seam_the_whole_square_is_painted() -> None:
    photo, mask = picture(0, (96, 64)), spot(64, 96, 30, 50)
    view = seen(photo, mask, 64, "a mask")
    result = np.asarray(paste(photo.copy(), view, 255 - view.image, seam=False))
    top, left, side = view.box
    assert (result[top:top + side, left:left + side] == 255 - view.image).all()
    assert (result[:, :left] == photo[:, :left]).all()
    assert (result[:, left + side:] == photo[:, left + side:]).all()


def test_colours_are_matched_around_the_hole() -> None:
    photo, mask = np.full((64, 64, 3), (100, 120, 140), np.uint8), spot(64, 64, 32, 32, 8)
    view = seen(photo, mask, 64, "a mask")
    painted = np.full((64, 64, 3), (110, 120, 120), np.uint8)
    painted[mask > 0] = (210, 220, 220)
    plain, matched = (np.asarray(paste(photo.copy(), view, painted, match_colour=match))
                      for match in (False, True))
    assert (plain[32, 32] == (210, 220, 220)).all() and (matched[32, 32] == (200, 220, 240)).all()


def test_changes_are_counted_where_they_are() -> None:
    photo, mask = picture(0, (64, 64)), spot(64, 64, 32, 32, 8)
    view = seen(photo, mask, 64, "a mask")
    assert changes(view.image, view.image, view.hole)["change"] == 0
    inside = view.image.astype(int)
    inside[view.hole > 0] += np.where(inside[view.hole > 0] > 127, -10, 10)
    painted = inside.astype(np.uint8)
    assert changes(view.image, painted, view.hole) == {"fidelity": 1.0, "change": 10.0, "iou": 0.0}
    plainly = view.image ^ (view.hole[..., None] << 7).astype(np.uint8)  # by 128 levels
    assert changes(view.image, plainly, view.hole)["iou"] == 1
    assert changes(view.image, painted, 1 - view.hole) == {"fidelity": 0.0, "change": 0.0, "iou": 0.0}
