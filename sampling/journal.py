"""samples.jsonl: one row an image, and whether its images were drawn with the settings of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataset.layouts import FURTHER
from runtime.errors import UserError
from runtime.files import read_rows

TITLES = {"photos": "the content of --images",  # settings that are not flags
          "inputs": "the content of --images or --masks",
          "selector": "the network or the photos of --select"}


def read_journal(journal: Path, settings: dict[str, Any], defaults: dict[str, Any],
                 digests: dict[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """The rows by image. The other arguments: as of SampleFolder.

    Raises UserError where images were drawn with other settings.
    """
    rows = read_rows(journal)
    for row in rows:
        changed = _changes(row, settings, defaults, digests)
        if any(change.startswith("checkpoint was ") for change in changed):
            raise UserError(f"{journal}: these images were drawn from other weights than --ckpt has now "
                            "(trained on, or anew): give another --out, or delete this folder")
        if changed:
            raise UserError(f"{journal}: these images were drawn with other settings ({'; '.join(changed)}); "
                            "give those, or another --out")
    return {str(row.get("file")): row for row in rows}


def _changes(row: dict[str, Any], settings: dict[str, Any], defaults: dict[str, Any],
             digests: dict[str, tuple[str, str]]) -> list[str]:
    """The settings that differ in a row. One that the row lacks has its default, or is not compared."""
    now, was = defaults | settings, defaults | row
    changed = [f"{TITLES.get(key, key)} was {was[key]}, is {value}" for key, value in now.items()
               if key in was and was[key] != value
               and (key != "selector" or was.get("select") == now.get("select"))]
    known = digests.get(str(row.get("class")), ())
    if known and row.get("inputs", known[0]) not in known:
        changed.append(f"{TITLES['inputs']} was {row['inputs']}, is {known[0]}")
    return changed


def redraw_of(row: dict[str, Any]) -> int:
    """How often the image of a row was rejected before it was drawn."""
    redraw = row.get("redraw")
    return redraw if isinstance(redraw, int) else 0


def damages_of(row: dict[str, Any]) -> list[str]:
    """The damage types of an image, in the order of their numbers in its mask."""
    return [row["class"], *(each["class"] for each in row.get(FURTHER, []))]
