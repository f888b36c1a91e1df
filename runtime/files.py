"""Files written whole or not at all: into a private folder beside the target, fsync, rename. JSON rows."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from runtime.errors import UserError

WINDOWS = os.name == "nt"


@contextlib.contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Run a block that writes `path`; an error of the operating system becomes a UserError naming `path`."""
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk by an exception of its own, with the system's message as its text.
        if not isinstance(error, OSError) and "os error" not in str(error).lower():
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: could not be written ({reason}); free some space or choose another --out, "
                        "then run the command again") from error


def private_folder(path: Path) -> Path:
    """The hidden folder beside `path` in which this process alone writes."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_private(name: str) -> bool:
    """Whether a name has the form that private_folder gives."""
    return re.fullmatch(r"\..+\.\d+\.tmp", name) is not None


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, then rename that file to `path`. Until then the old file is intact.

    Libraries such as safetensors write through temporary files of their own beside the path that they are
    given. In a private folder, a later command finds and removes all that a killed one left. Raises
    UserError, naming `path`, where the disk is full or the folder is read-only.
    """
    private = private_folder(path)
    temporary = private / path.name
    with naming_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
            private.mkdir()
            write(temporary)
            with contextlib.suppress(OSError):  # safetensors makes files that only their owner can read
                os.chmod(temporary, private.stat().st_mode & 0o666)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            try:
                shutil.rmtree(private, ignore_errors=True)
            except BaseException:  # Ctrl-C amid that, which rmtree may turn into an OSError
                shutil.rmtree(private, ignore_errors=True)
                raise


def remove_leftovers(folder: Path) -> None:
    """Delete the private folders, in `folder` and below, of processes that were killed."""
    # os.walk passes over folders that another process removes meanwhile; Path.rglob raises an error
    _remove_dead([Path(place, name) for place, folders, files in os.walk(folder) for name in folders + files
                  if is_private(name)])


def _remove_dead(paths: Iterable[Path]) -> None:
    for path in paths:
        if not is_private(path.name) or _is_running(int(path.name.split(".")[-2])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # another process may be deleting it too
        else:  # a temporary file of an earlier version
            path.unlink(missing_ok=True)


def _is_running(number: int) -> bool:
    """Whether a process of this number, other than this one, runs on this machine."""
    if WINDOWS:  # os.kill would end it, whatever the signal
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return number != os.getpid()


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, is on the disk."""
    if WINDOWS and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some file systems cannot
            raise
    finally:
        os.close(descriptor)


def save_image(path: Path, image: Image.Image) -> None:
    """Write a PNG."""
    write_atomic(path, lambda temporary: image.save(temporary, format="PNG"))


def save_text(path: Path, text: str) -> None:
    """Write a file in UTF-8. Undecodable bytes of file names are written as escapes."""
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace"))


def save_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, keys in the order given."""
    save_text(path, json.dumps(value, indent=2) + "\n")


def save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    save_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one row. Raises UserError, naming `path`, where it cannot be written."""
    with naming_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def json_object(text: str | bytes, complaint: str) -> dict[str, Any]:
    """The object in a JSON text that may be anyone's. Raises UserError, which begins with `complaint`."""
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:  # RecursionError: nested brackets
        raise UserError(f"{complaint} ({error}); fetch it again") from error
    return value


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, [] where there is none; a last line without its end, left by a kill, is ignored.

    Raises UserError for any other line that is no JSON object.
    """
    *lines, _ = (path.read_bytes() if path.exists() else b"").split(b"\n")
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
            if not isinstance(rows[-1], dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise UserError(f"{path}: line {number} is damaged; delete that line") from None
    return rows


def cut_back(path: Path) -> None:
    """Remove a last line without its end, before more rows are appended."""
    if path.exists():
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)


def below_here(path: str | Path) -> str:
    """A path as it is recorded and shown, however it was given: relative if it lies in the current folder."""
    place, here = Path(os.path.abspath(path)), Path.cwd()
    return place.relative_to(here).as_posix() if place.is_relative_to(here) else str(place)


def refuse_inside(out: Path, folders: Iterable[str]) -> None:
    """Raises UserError where `out`, a folder or a picture to write, lies in a folder of photos."""
    for folder in folders:
        if out.resolve().is_relative_to(Path(folder).expanduser().resolve()):
            raise UserError(f"--out {out}: lies in {folder}, among the images that are read, and would be "
                            "taken for some of them; give another --out")


def sha256(path: Path) -> str:
    """The hash of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
