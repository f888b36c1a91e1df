"""The view of each item in each epoch: a function of (seed, epoch, item), see windows.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dataset.image_files import size_of
from dataset.layouts import Photo, is_good
from dataset.views import view_of
from dataset.windows import TURNS, Box, Place, draw_window, kind_of, longer_side, places_of, stand_in
from runtime.seeds import numpy_rng

Decoded = Callable[[int], tuple[np.ndarray, np.ndarray | None]]


class ItemViews:
    """Which square of an item's photo an epoch shows.

    decoded: item -> its photo (H,W,3) and where its own damage is (H,W), in the pixels of all windows.
    padded: whether all photos are made square before.
    """

    def __init__(self, items: list[Photo], view: str, seed: int, resolution: int, decoded: Decoded,
                 padded: bool = False) -> None:
        self.items, self.view, self.seed, self.resolution = items, view, seed, resolution
        self.decoded, self.padded = decoded, padded
        self._found: dict[tuple[int, str], Any] = {}

    @property
    def vary(self) -> bool:
        """Whether any item's view differs from epoch to epoch."""
        return not all(map(self.shown_whole, range(len(self.items))))

    def shown_whole(self, index: int) -> bool:
        """Whether all of the item's photo is in every view."""
        if self.padded or self.view != "whole":
            return self.padded
        width, height = self._once(index, "size", lambda: size_of(self.items[index].image))
        return width == height

    def shape(self, index: int) -> tuple[int, ...]:
        """(H,W,3) of the item's photo."""
        return self._once(index, "shape", lambda: self.decoded(index)[0].shape)

    def window(self, index: int, epoch: int, held: Place | None = None) -> Box:
        """(top, left, side) of the view. held: what it holds, instead of the item's own damage."""
        shape = self.shape(index)
        if self.shown_whole(index):
            return 0, 0, shape[0]
        kind, turn = self.turn(index, epoch)
        rng = numpy_rng(self.seed, "view", epoch, index)
        place = held or self._held(index, kind, turn, rng)
        return draw_window(rng, kind, shape, self.resolution, place)

    def turn(self, index: int, epoch: int) -> tuple[str, int]:
        """"whole" or "close", and which turn of that kind it is for the item."""
        return kind_of(self.view, epoch + int(numpy_rng(self.seed, "first view", index).integers(TURNS)))

    def places(self, index: int, kind: str) -> list[Place]:
        """Where the item's damage is; without damage none."""
        return self._once(index, kind, lambda: places_of(self.decoded(index)[1], kind, self.resolution))

    def siblings(self, index: int, *, damaged: bool) -> list[int]:
        """The damaged or the undamaged items of the same product."""
        return [i for i, item in enumerate(self.items)
                if item.product == self.items[index].product and is_good(item.damage) != damaged]

    def _held(self, index: int, kind: str, turn: int, rng: np.random.Generator) -> Place:
        """What a view holds: each place of the item's damage by turns, or one as large as another's."""
        if own := self.places(index, kind):
            return own[turn % len(own)]
        damaged = self.siblings(index, damaged=True)
        others = self.places(int(rng.choice(damaged)), kind) if damaged else []
        shape = self.shape(index)
        extent = longer_side(others[rng.integers(len(others))]) if others else min(shape[:2]) // 4
        region = self._once(index, "object", lambda: view_of(self.decoded(index)[0]).object)
        return stand_in(rng, shape, extent, region)

    def _once(self, index: int, what: str, find: Callable[[], Any]) -> Any:
        if (index, what) not in self._found:
            self._found[index, what] = find()
        return self._found[index, what]
