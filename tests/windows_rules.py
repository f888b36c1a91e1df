"""What Windows does otherwise, on any system: no fcntl, and no open or mapped file is replaced or removed."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import files

RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def in_use() -> set[str]:
    """The files that this process has open or mapped."""
    held = {line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines()
            if line.count("/")}
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.add(os.readlink(link))
    return held


def refusing(change: Callable[..., None]) -> Callable[..., None]:
    """os.unlink, os.replace, .. that refuses where a path, or a file below it, is in use."""
    def changed(*paths: str | Path, **options: object) -> None:
        for path in map(os.path.realpath, paths):
            for held in in_use():
                if held == path or held.startswith(path + os.sep):
                    raise PermissionError(13, "The process cannot access the file: it is being used", held)
        change(*paths, **options)
    return changed


class Locks:
    """msvcrt.locking: a byte of a file is one descriptor's until that is closed."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.owners: dict[tuple[int, int], int] = {}

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        file, place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        owner, still = self.owners.get((file, place)), None
        with contextlib.suppress(OSError):
            still = os.fstat(owner).st_ino if owner is not None else None
        if owner != descriptor and still == file:
            raise PermissionError(13, "Permission denied")
        self.owners[file, place] = descriptor


@contextlib.contextmanager
def windows_rules() -> Iterator[None]:
    """Run a block under these rules, as far as this process and its Python code go."""
    msvcrt = types.ModuleType("msvcrt")
    locks = Locks()
    vars(msvcrt).update(locking=locks.locking, LK_NBLCK=locks.LK_NBLCK)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"fcntl": None, "resource": None, "msvcrt": msvcrt}.items():
            patch.setitem(sys.modules, name, module)
        patch.setattr(files, "WINDOWS", True)
        patch.setattr(shutil, "_use_fd_functions", False)
        for name in ("unlink", "remove", "replace", "rename", "rmdir"):
            patch.setattr(os, name, refusing(getattr(os, name)))
        yield


def unportable(folder: Path) -> list[str]:
    """Files and folders that Windows or macOS cannot hold: reserved, or equal but for case."""
    found = []
    for place, folders, names in os.walk(folder):
        everything = folders + names
        folded = [name.casefold() for name in everything]
        found += [os.path.join(place, name) for name in everything
                  if set(name) & set('<>:"|?*\\') or name.endswith((" ", "."))
                  or name.casefold().split(".")[0] in RESERVED or folded.count(name.casefold()) > 1]
    return found
