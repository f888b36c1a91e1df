"""Mistakes that a user can mend: raised anywhere, printed as one line, exit status 2."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message is one line: it names the file or flag and says what to do."""


ADVICE = {errno.ENOSPC: "free some disk space and run the same command again",
          errno.EDQUOT: "your disk quota is used up: free some space and run the same command again",
          errno.EACCES: "check its permissions", errno.EROFS: "choose a folder that can be written"}


def message(error: BaseException) -> str | None:
    """The one line for an error from outside the program; None for a bug, which keeps its traceback."""
    text = str(error)
    if isinstance(error, UserError):  # which a DataLoader's worker sends with its own traceback before it
        return text.rpartition("UserError: ")[2] if "Original Traceback" in text else text
    # Known by name, for torch takes seconds to import and most mistakes happen before it is needed.
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in text:
        return ("out of memory: use a smaller --batch-size (in training with a larger --accumulate, or "
                "--checkpointing full)")
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller --batch-size, or close other programs"
    if "DataLoader worker" in text and "killed" in text:
        return f"{text.splitlines()[0]}; this may be for want of memory: use --workers 0"
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename if error.filename is not None else "a file"
        hint = ADVICE.get(error.errno)
        return f"{name}: {os.strerror(error.errno)}" + (f"; {hint}" if hint else "")
    return None


class Signals:
    """While the block runs, the first Ctrl-C or SIGTERM is `seen` and calls `first`; the next ends it all."""

    def __init__(self, first: Callable[[], None]) -> None:
        self.first, self.seen = first, False

    def __enter__(self) -> Signals:
        self._usual = {number: signal.signal(number, self._note)
                       for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.seen = True
        for number in self._usual:  # by the system: Python would first finish what it is computing
            signal.signal(number, signal.SIG_DFL)
        self.first()


def _interrupt() -> None:
    raise KeyboardInterrupt


def run(main: Callable[[], None]) -> None:
    """Call `main`; end a user's mistake in one line on stderr with status 2, Ctrl-C or SIGTERM with 130.

    What is open is then closed, and what is half written removed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    with Signals(_interrupt) as signals:
        try:
            main()
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # the reader (head, less) went away: nothing is wrong here
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            if signals.seen:  # raised amid a library's own code, which made another error of it
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            line = message(error)
            if line is None:
                raise
            print("error: " + printable(line), file=sys.stderr)
            sys.exit(2)


def printable(text: str) -> str:
    """One line of at most 2,000 characters, none of which, in a name from a file, steers the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))[:2000]
