"""One command at a time in a folder that it writes to."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from errors import UserError
from files import naming


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the block runs, `folder`, made if need be, is this process's. Raises UserError naming the owner.

    The system lets go of a lock when its owner ends, however it ends, so none is ever stale; what a killed
    owner leaves is a file .lock that nobody holds. Record locks, not flock: workers that outlive a killed
    trainer by seconds do not inherit them.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / ".lock"
    with _held(folder, place) as file:
        try:
            with naming(place):
                file.truncate(0)
                os.write(file.fileno(), f"{os.getpid()} on {platform.node()}".encode())
            yield
        finally:
            place.unlink(missing_ok=True)  # before the lock is let go of: so it is never another's
            if made and not any(folder.iterdir()):  # refused before anything was written
                folder.rmdir()


@contextlib.contextmanager
def _held(folder: Path, place: Path) -> Iterator[IO[str]]:
    """The file at `place`, open and locked, and still at its place: an owner that ends takes it away."""
    while True:
        with open(place, "a+") as file:
            _lock(folder, file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                    yield file
                    return


def _lock(folder: Path, file: IO[str]) -> None:
    """Lock an open file, or say that this system or file system cannot."""
    try:
        import fcntl  # there is none on Windows
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise UserError(f"{folder}: process {file.read() or 'of another run'} is writing here; wait for its "
                        "end, or give another --out") from error
    except (ImportError, OSError) as error:
        print(f"{folder}: cannot be locked here ({error}); start nothing else that writes to it",
              file=sys.stderr)
