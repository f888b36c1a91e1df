"""Images taken out of a sample folder by --reject: kept in rejected/, and drawn again with other noise.

    rejected/samples.jsonl                    the rows of the images, which samples.jsonl no longer has
    rejected/<damage>/NNN-<redraw>.png        the images, and NNN-<redraw>_mask.png their masks
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from dataset.layouts import Files
from runtime.errors import UserError
from runtime.files import append_row, cut_back, naming_errors, read_rows, sync
from sampling.journal import redraw_of

MOST = 10**6  # images a class: image i is drawn as number i + MOST * redraw


class Rejected:
    """What was rejected so far. `folder` need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / "samples.jsonl"

    def counts(self) -> Counter[str]:
        """How often each file, named as in samples.jsonl, was rejected."""
        return Counter(str(row.get("file")) for row in read_rows(self.journal))

    def add(self, row: dict[str, Any], files: Files) -> None:
        """Note the row of an image, then move its mask and the image, if they are still there."""
        redraw = redraw_of(row)
        if self.counts()[row["file"]] <= redraw:  # else a command that did this was stopped
            self.folder.mkdir(exist_ok=True)
            cut_back(self.journal)
            append_row(self.journal, row)
            sync(self.journal)
        place = self.folder.joinpath(*str(row["class"]).split("/"))
        stem = f"{files.image.stem}-{redraw}"
        for file, name in ((files.mask, f"{stem}_mask.png"), (files.image, f"{stem}.png")):
            if file.exists():
                with naming_errors(place / name):
                    place.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place / name)


def read_list(file: Path) -> dict[str, int]:
    """A list of images, one a line as <file> <redraw>: which drawing of each is rejected.

    <redraw> may be left out: 0, the first drawing. Raises UserError where the list cannot be read.
    """
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"--reject {file}: cannot be read ({reason}); give the list that gallery.html saves"
                        ) from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name, _, redraw = line.strip().rpartition(" ")
        if not redraw:
            continue
        if not redraw.isdigit() or not name:
            name, redraw = line.strip(), "0"
        if len(redraw) > 6:
            raise UserError(f"--reject {file}: line {number}: {redraw} is no number of a drawing")
        found[name] = max(found.get(name, 0), int(redraw))
    return found
