"""Images that are not in the dataset: taken out by --reject, or thrown away by --select as they were drawn.
They are kept in rejected/, and others are drawn in their place, with other noise.

    rejected/samples.jsonl                    the rows of the images, which samples.jsonl does not have; where
                                              --select threw one away, with its reasons as `failed`
    rejected/<damage>/NNN-<redraw>.png        the images, and NNN-<redraw>_mask.png their masks
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

from dataset.layouts import JOURNAL, Files
from runtime.errors import UserError
from runtime.files import append_row, cut_back, naming_errors, read_rows, sync
from sampling.journal import redraw_of

MOST = 10**6  # images a class: image i is drawn as number i + MOST * redraw


class Rejected:
    """What was rejected so far. `folder` need not exist."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / JOURNAL

    def counts(self) -> Counter[str]:
        """How often each file, named as in samples.jsonl, was rejected."""
        return Counter(str(row.get("file")) for row in read_rows(self.journal))

    def failures(self) -> Counter[str]:
        """How often --select threw each file away since a person last rejected it."""
        found = Counter[str]()
        for row in read_rows(self.journal):
            name = str(row.get("file"))
            found[name] = found[name] + 1 if "failed" in row else 0
        return found

    def files(self, row: dict[str, Any], image: Path) -> Files:
        """Where the image of a row lies, whose file in the dataset is `image`, and its mask."""
        stem = self.folder.joinpath(*str(row["class"]).split("/"), f"{image.stem}-{redraw_of(row)}")
        return Files(stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}_mask.png"))

    def append(self, row: dict[str, Any]) -> None:
        """Write the row of an image whose files are here already: a row counts as one drawing."""
        self.folder.mkdir(exist_ok=True)
        cut_back(self.journal)
        append_row(self.journal, row)
        sync(self.journal)

    def add(self, row: dict[str, Any], files: Files) -> None:
        """Note the row of an image, then move its mask and the image, if they are still there."""
        redraw = redraw_of(row)
        if self.counts()[row["file"]] <= redraw:  # else a command that did this was stopped
            self.append(row)
        places = self.files(row, files.image)
        for file, place in ((files.mask, places.mask), (files.image, places.image)):
            if file.exists():
                with naming_errors(place):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)


def read_list(file: Path, known: set[str]) -> dict[str, int]:
    """A list of images, one a line as <file> <redraw>: which drawing of each is rejected.

    <redraw> may be left out: 0, the first drawing. A file that is not among the `known` may be written in
    another way: ./good/000.png, good\\000.png. Raises UserError where the list cannot be read.
    """
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"--reject {file}: cannot be read ({reason}); give the list that gallery.html saves"
                        ) from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name, _, redraw = line.strip().rpartition(" ")
        if not redraw:
            continue
        if not redraw.isdecimal() or not name:
            name, redraw = line.strip(), "0"
        if len(redraw) > 6:
            raise UserError(f"--reject {file}: line {number}: {redraw} is no number of a drawing")
        if name not in known:
            name = PurePosixPath(name.replace("\\", "/")).as_posix()
        found[name] = max(found.get(name, 0), int(redraw))
    return found
