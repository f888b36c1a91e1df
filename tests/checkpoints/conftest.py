"""A checkpoint of train_class.py, for the tests that convert and publish it."""

from __future__ import annotations

from pathlib import Path

import pytest
from bases import Place
from runs import train_lora


@pytest.fixture(scope="session")
def run(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """alpha / rank is 2, as in the recipe."""
    return train_lora(place, tmp_path_factory.mktemp("runs") / "run", "--alpha", 8)
