"""A folder of generated images in the layout of a dataset, and its journal samples.jsonl."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dataset.layouts import JOURNAL, REJECTED, Files, files_of, mask_values
from runtime import distributed
from runtime.errors import UserError
from runtime.files import append_row, below_here, cut_back, save_rows, sync
from runtime.locks import locked
from sampling.contact_sheet import Shown
from sampling.drawings import Entry, Sample
from sampling.generation import Wanted
from sampling.journal import damages_of, read_journal, redraw_of
from sampling.rejected import MOST, Rejected, read_list


class SampleFolder:
    """Where the images go, and samples.jsonl, one row an image.

    The row is written first, then the mask, then the image, each whole or not at all. So an image with a row
    is complete, a row without an image is still to draw, and an image without a row is someone else's. Where
    --select threw a drawing away, its files come first: its row, in rejected/, alone says that it was drawn.
    settings: what all images of the folder have in common; `layout` is one of LAYOUTS. defaults: of settings
    that an older row lacks. digests: of each class's masks, and what older rows hold for the same.
    """

    def __init__(self, folder: Path, classes: list[str], settings: dict[str, Any], defaults: dict[str, Any],
                 digests: dict[str, tuple[str, str]]) -> None:
        self.folder, self.settings, self.journal = folder, settings, folder / JOURNAL
        self.defaults, self.digests, self.classes = defaults, digests, classes
        self.mask_values = mask_values(classes, settings["layout"])
        self.rows: dict[str, dict[str, Any]] = {}  # by image
        self.taken_out = Rejected(self._aside(REJECTED))
        self.redraws: Counter[str] = Counter()  # how often each image was rejected or thrown away
        self.failures: Counter[str] = Counter()  # how often --select threw each away in a row
        self.rejected: list[str] = []  # why masks did not fit
        self.left_out: list[str] = []  # the classes of images for which no mask fitted

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """While the block runs, no other process may use the folder.

        Raises UserError where another process has it, its images were drawn with other settings, or it holds
        a dataset.
        """
        if not self.journal.exists():
            self._check_empty()
        with locked(self.folder) if distributed.first() else contextlib.nullcontext():
            if distributed.first():
                cut_back(self.journal)
                self._read()
                self._take_out([row for name, row in self.rows.items()  # a command that did this was stopped
                                if redraw_of(row) < self.redraws[name]])
            distributed.wait()
            if not distributed.first():
                self._read()
            yield

    def _check_empty(self) -> None:
        """Raises UserError where the folders of the images or masks already hold something."""
        for damage in self.classes:
            for file in self.files(damage, 0):
                place = file.parent.parent  # image/ or mask/
                if place.is_dir() and any(place.iterdir()):
                    raise UserError(f"--out {self.folder}: {place} holds files that sample.py did not write; "
                                    "generated images do not go into a dataset: give another --out")

    def _read(self) -> None:
        self.rows, _ = (read_journal(journal, self.settings, self.defaults, self.digests)
                        for journal in (self.journal, self.taken_out.journal))
        self._count()

    def _count(self) -> None:
        self.redraws, self.failures = self.taken_out.counts(), self.taken_out.failures()

    def files(self, damage: str, number: int) -> Files:
        """The files of an image and its mask; product/damage becomes <product>/image/<damage>."""
        return files_of(self.folder, damage, number, self.settings["layout"])

    def _aside(self, name: str) -> Path:
        """Where a picture goes that is not of the dataset: in MVTec AD's layout, where every picture in the
        folder counts, beside it."""
        if self.settings["layout"] == "mvtec":
            folder = self.folder.resolve()
            return Path(below_here(folder.with_name(f"{folder.name}-{name}")))
        return self.folder / name

    @property
    def grid(self) -> Path:
        """The contact sheet."""
        return self._aside("grid.png")

    @property
    def gallery(self) -> Path:
        """The page with every image. Its links are relative to the folder."""
        return self.folder / "gallery.html"

    @property
    def annotations(self) -> Path:
        """What --layout coco writes beside the images."""
        return self.folder / "annotations.json"

    def drawn_as(self, pair: Wanted) -> Wanted:
        """The class and number that an image is drawn by: others after each time that it was rejected."""
        damage, number = pair
        return damage, number + MOST * self.redraws[self.name_of(self.files(*pair).image)]

    def failed(self, pair: Wanted) -> int:
        """How often --select threw an image away since a person last rejected it."""
        return self.failures[self.name_of(self.files(*pair).image)]

    def reject(self, file: Path) -> int:
        """Take the images out that the list `file` names; returns how many, less those taken out before, of
        which it says so on stderr.

        Raises UserError for an image that was not drawn here.
        """
        listed, before = read_list(file, {*self.rows, *self.redraws}), len(self.rows)
        for name, redraw in listed.items():
            if redraw > self.redraws[name] or name not in self.rows and not self.redraws[name]:
                raise UserError(f"--reject {file}: {name} was not drawn in {self.folder}; give the list "
                                "that its gallery.html saves")
        if distributed.first():
            if earlier := [name for name, redraw in listed.items() if redraw < self.redraws[name]]:
                print(f"--reject {file}: {len(earlier)} of the drawings were taken out before, those in "
                      f"their place stay; for the present one: {earlier[0]} {self.redraws[earlier[0]]}",
                      file=sys.stderr)
            self._take_out([self.rows[name] for name, redraw in listed.items()
                            if name in self.rows and redraw == self.redraws[name]])
        distributed.wait()
        if not distributed.first():
            self._read()
        return before - len(self.rows)

    def _take_out(self, rows: list[dict[str, Any]]) -> None:
        """Move images, masks and rows to rejected/. Raises UserError for a damaged row."""
        for row in rows:
            files = self._files_of(row)
            if files is None:
                raise UserError(f"{self.journal}: {row['file']}: the row is damaged; delete that line")
            self.taken_out.add(row, files)
            del self.rows[row["file"]]
        if rows:
            save_rows(self.journal, list(self.rows.values()))
            self._count()

    def _files_of(self, row: dict[str, Any]) -> Files | None:
        """The files of a row; None for one that this command did not write."""
        damage, number = row.get("class"), row.get("number")
        if damage not in self.classes or not isinstance(number, int):
            return None
        files = self.files(damage, number)
        return files if self.name_of(files.image) == row.get("file") else None

    def shown(self) -> list[Shown]:
        """Every image there, by class and number."""
        found = [(self.classes.index(row["class"]), row["number"], Shown(*files, row))
                 for row in self.rows.values() if (files := self._files_of(row)) and files.image.exists()]
        return [shown for *_, shown in sorted(found, key=lambda each: each[:2])]

    def missing(self, classes: list[str], per_class: int) -> list[Wanted]:
        """The (class, number) pairs still to draw. Raises UserError where someone else's file is in the way.
        """
        pairs = [(damage, number) for damage in classes for number in range(per_class)]
        files = [self.files(*pair).image for pair in pairs]
        foreign = [file for file in files if file.exists() and self.name_of(file) not in self.rows]
        if not self.journal.exists() and not self.taken_out.journal.exists():
            more = [self.annotations] if self.settings["layout"] == "coco" else []
            foreign = [file for file in (self.grid, self.gallery, *more) if file.exists()] + foreign
        if foreign:
            raise UserError(f"{foreign[0]}: exists and was not drawn by this command; give another --out")
        return [pair for pair in pairs if not self.files(*pair).image.exists()]

    def entries(self, samples: list[Sample], damage: str, number: int) -> list[Entry]:
        """What the drawings of one image are written as: the last one, after those that --select threw away.
        """
        files, found = self.files(damage, number), []
        name = self.name_of(files.image)
        inputs = {"inputs": self.digests[damage][0]} if damage in self.digests else {}
        for redraw, sample in enumerate(samples, self.redraws[name]):
            row = {"file": name, "class": damage, "number": number, **({"redraw": redraw} if redraw else {}),
                   **self.settings, **inputs, **sample.about}
            values = np.array([0, *(self.mask_values.get(each, 0) for each in damages_of(row))], np.uint8)
            mask = None if sample.mask is None else values[sample.mask]
            place = self.taken_out.files(row, files.image) if "failed" in row else files
            found.append(Entry(row, place, sample.rejected, sample.image is None, sample.image, mask))
        return found

    def note(self, entry: Entry) -> None:
        """Append the row to its journal, unless it is there; count what --select threw away, and masks that
        did not fit."""
        name = entry.row["file"]
        self.rejected += entry.rejected
        if entry.unplaced:
            self.left_out.append(entry.row["class"])
        elif entry.thrown_away:
            self.taken_out.append(entry.row)
            self.redraws[name] += 1
            self.failures[name] += 1
        elif name not in self.rows:
            append_row(self.journal, entry.row)
            sync(self.journal)
            self.rows[name] = entry.row

    def name_of(self, file: Path) -> str:
        """A file's path below the folder, as it stands in samples.jsonl."""
        return file.relative_to(self.folder).as_posix()
