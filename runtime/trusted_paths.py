"""Paths that files name: a checkpoint its base and data, samples.jsonl its photos.

Such a file may come from anyone, so what it names is opened only below a folder that this user trusts: the
current one, one that this command line names, or one that an earlier command of this user named on this
machine. The last are remembered in a file of the user's own, outside any run folder, because a run folder may
be someone else's. "tiny" and hub ids count as relative paths.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError

TRUSTED = (".",)  # in every command


def remember(*paths: str | None) -> None:
    """Note the existing files and folders among `paths`, which this user named on a command line.

    Where nothing can be noted (no home, a read-only disk), later commands ask for a flag.
    """
    known = _remembered()
    new = [full for path in paths if path and os.path.exists(os.path.expanduser(path))
           and (full := str(_full(path))) not in known and full.isprintable()]
    with contextlib.suppress(OSError, RuntimeError):
        if new:
            file = _state_file()
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(file, "a", encoding="utf-8") as opened:
                opened.write("".join(f"{path}\n" for path in dict.fromkeys(new)))


def is_trusted(path: str | Path, folders: Sequence[str | Path] = ()) -> bool:
    """Whether `path`, compared as text and not looked up, is or lies below a trusted path."""
    place = _full(path)
    return any(place.is_relative_to(_full(folder)) for folder in (*TRUSTED, *folders, *_remembered()))


def followed(path: str, file: Path | str, remedy: str, folders: Sequence[str | Path] = ()) -> str:
    """`path`, which `file` names. Raises UserError, ending in `remedy`, where it may not be opened."""
    if not is_trusted(path, folders):
        raise UserError(f"{file}: names {path}, which lies outside the current folder, and no command of "
                        f"yours on this machine named it before; {remedy}")
    return path


def flag_if_untrusted(flag: str, path: str) -> str:
    """The flag that a command needs where `path`, in a file that it reads, would not be followed."""
    return "" if is_trusted(path) else f" {flag} {shlex.quote(path)}"


def _state_file() -> Path:
    """Where this user's paths are remembered. Raises RuntimeError for a user without a home."""
    folder = os.environ.get("XDG_STATE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return Path(folder or Path.home() / ".local" / "state", "few-shot-defects", "chosen_paths.txt")


def _remembered() -> list[str]:
    try:
        lines = _state_file().read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, RuntimeError):
        return []
    return [line for line in lines if os.path.isabs(line)]


def _full(path: str | Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))
