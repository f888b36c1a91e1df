"""Several processes that draw: each writes its own images, and the first the rows of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runtime import distributed
from sampling import batches
from sampling.drawings import Entry, Sample
from sampling.sample_folder import SampleFolder

PAIRS = [("broken_small", number) for number in range(4)]


def picture(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), level, np.uint8))


def written(folder: SampleFolder) -> list[str]:
    return sorted(path.name for path in folder.folder.rglob("*.png"))


def draw_as(rank: int, folder: SampleFolder, monkeypatch: pytest.MonkeyPatch
            ) -> tuple[list[Entry], list[list[str]]]:
    """Draw as one of two processes; returns what it sends to the first, and its files whenever it waits."""
    sent: list[Entry] = []
    waits: list[list[str]] = []
    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "wait", lambda: waits.append(written(folder)))
    monkeypatch.setattr(distributed, "gather", lambda own: sent.extend(own) or ([own] if rank == 0 else []))
    monkeypatch.setattr(batches, "draw_damages", lambda inputs, pairs, draw: [
        Sample(picture(10 + number), np.ones((8, 8), np.uint8)) for _, number in pairs])
    batches.draw_all(batches.batches_of(["broken_small"], 4, 1, PAIRS), None, None,  # type: ignore[arg-type]
                     folder, set(PAIRS[1:]))
    return sent, waits


@pytest.mark.parametrize(("rank", "own"), [(0, ["002"]), (1, ["001", "003"])])
def test_a_process_writes_its_images_and_sends_their_rows(rank: int, own: list[str], tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Number 0 is not wanted: it is drawn with its batch, and not written."""
    folder = SampleFolder(tmp_path / "out", ["broken_small"], {"layout": "ds"}, {}, {})
    with folder.opened():
        sent, waits = draw_as(rank, folder, monkeypatch)
    images = sorted(name for n in own for name in (f"{n}.png", f"{n}_mask.png"))
    assert waits == [[], [name for name in images if name[:3] in own[:-1]], images]
    assert [entry.row["number"] for entry in sent] == [int(number) for number in own]
    assert all(entry.image is None and entry.mask is None for entry in sent)
    assert written(folder) == images
    assert folder.journal.exists() == (rank == 0) and len(folder.rows) == (rank == 0)
