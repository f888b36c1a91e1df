"""Output folders: one command at a time writes to a folder; a new folder is filled whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from runtime import files
from runtime.errors import UserError
from runtime.files import is_private, naming_errors, private_folder, remove_leftovers, sync

LOCK = ".lock"
UNREAD = 1 << 30  # the byte that Windows locks: others cannot read it, and what is written lies before it


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder`, created if needed, for this process; remove what killed processes left in it.

    Raises UserError naming the process that has it, and where a file is in its way. The system releases the
    lock when its owner ends, so a killed owner leaves a file .lock that nobody holds. Record locks, not
    flock: DataLoader workers, which may outlive a killed trainer by seconds, do not inherit them.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: there is a file in the way of this folder; give another --out") from error
    place = folder / LOCK
    try:
        with _held(folder, place) as file:
            try:
                with naming_errors(place):
                    file.truncate(0)
                    os.write(file.fileno(), f"{os.getpid()} on {platform.node()}".encode())
                remove_leftovers(folder)
                yield
            finally:
                if not files.WINDOWS:  # before the lock is released, after which it may be another's
                    try:
                        _leave(folder, place, made)
                    except KeyboardInterrupt:
                        place.unlink(missing_ok=True)
                        raise
    finally:
        if files.WINDOWS:  # which removes no open file: neither before this, nor another's
            with contextlib.suppress(OSError):
                _leave(folder, place, made)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A private folder, whose files move to `out` when the block ends without an error.

    Raises UserError where `out` exists and is not an empty folder. After an error `out` is as before. A
    killed process leaves its private folder in `out`: then `out` may be filled again, replacing files.
    """
    made, names = not out.exists(), {entry.name for entry in out.iterdir()} if out.is_dir() else set()
    if (not made and not out.is_dir()) or (names - {LOCK} and not any(map(is_private, names))):
        raise UserError(f"{out}: exists and is not an empty folder; give another name")
    private = private_folder(out / "files")
    try:
        with locked(out):
            private.mkdir()
            yield private
            for file in [file for file in private.rglob("*") if file.is_file()]:
                target = out / file.relative_to(private)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
            sync(out)
    except UserError as error:
        raise UserError(str(error).replace(str(private), str(out))) from error
    finally:  # the private folder goes last: without it `out` counts as finished
        try:
            shutil.rmtree(private, ignore_errors=True)
        except BaseException:  # as in write_atomic
            shutil.rmtree(private, ignore_errors=True)
            raise
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _leave(folder: Path, place: Path, made: bool) -> None:
    """Remove the lock file, and a folder that was made and then not written to."""
    place.unlink(missing_ok=True)
    if made and not any(folder.iterdir()):
        folder.rmdir()


@contextlib.contextmanager
def _held(folder: Path, place: Path) -> Iterator[IO[str]]:
    """The file `place`, open and locked. Tried again where its last owner removed it in between."""
    while True:
        with open(place, "a+", encoding="utf-8") as file:
            _lock(folder, file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                    yield file
                    return


def _lock(folder: Path, file: IO[str]) -> None:
    """Lock an open file; say on stderr where this system or file system cannot. Raises UserError."""
    try:
        _take(file)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        owner = file.read() or "of another run"
        raise UserError(f"{folder}: process {owner} is writing here; wait until it ends, or give another "
                        "--out") from error
    except (ImportError, OSError) as error:
        print(f"{folder}: cannot be locked here ({error}); start no other command that writes to it",
              file=sys.stderr)


def _take(file: IO[str]) -> None:
    """Lock an open file, or raise OSError at once."""
    if files.WINDOWS:
        msvcrt = importlib.import_module("msvcrt")
        os.lseek(file.fileno(), UNREAD, os.SEEK_SET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl  # not on Windows
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
