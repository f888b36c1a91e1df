"""Batches that a thread prepares while earlier ones are used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from runtime.errors import UserError
from training.batches import Batch, ahead


def test_the_same_batches_and_no_more_than_asked_for_ahead() -> None:
    made: list[int] = []
    third = threading.Event()

    def batches() -> Iterator[Batch]:
        for i in range(6):
            made.append(i)
            if i == 2:
                third.set()
            yield {"item": i}

    used = ahead(batches())
    assert next(used) == {"item": 0}
    assert third.wait(60)  # it goes on beside the user of the first
    assert next(used) == {"item": 1} and max(made) <= 3
    assert [batch["item"] for batch in used] == [2, 3, 4, 5]


def test_an_error_comes_in_its_turn() -> None:
    def batches() -> Iterator[Batch]:
        yield {"item": 0}
        raise UserError("1.png: cut off")

    used = ahead(batches())
    assert next(used) == {"item": 0}
    with pytest.raises(UserError, match="cut off"):
        next(used)
