"""Paths that files name: a checkpoint its base and data, samples.jsonl its photos.

Such a file may come from anyone. What it names is opened only below a folder that whoever runs the command
has chosen: the current one, or one that the command line names. "tiny" and hub ids look like relative paths.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from errors import UserError

CHOSEN = (".",)  # by whoever runs any command


def chosen(path: str | Path, folders: Sequence[str | Path] = ()) -> bool:
    """Whether `path`, taken literally and not looked up, leads down from the current folder or `folders`."""
    place = _full(path)
    return any(place.is_relative_to(_full(folder)) for folder in (*CHOSEN, *folders))


def followed(path: str, file: Path | str, remedy: str, folders: Sequence[str | Path] = ()) -> str:
    """`path`, which `file` names. Raises UserError, ending in `remedy`, where it is not one to be opened."""
    if not chosen(path, folders):
        raise UserError(f"{file}: names {path}, which lies outside the current folder, so it is not opened "
                        f"without being asked for; {remedy}")
    return path


def asked(flag: str, path: str) -> str:
    """What a command has to say more where `path`, in a file that it reads, would not be followed."""
    return "" if chosen(path) else f" {flag} {shlex.quote(path)}"


def _full(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
