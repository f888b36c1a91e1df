"""Errors that a user can fix: raised anywhere, printed as one line, exit status 2."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable


class UserError(Exception):
    """An error that the user can fix. Its message is one line: the file or flag, and what to do."""


ADVICE = {errno.ENOSPC: "free some disk space and run the same command again",
          errno.EDQUOT: "your disk quota is used up: free some space and run the same command again",
          errno.EACCES: "check its permissions", errno.EROFS: "choose a folder that can be written"}


# What libraries say, beside torch.OutOfMemoryError, where a GPU's or the computer's memory does not suffice.
NO_MEMORY = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
             "DEVICE_ALLOCATION_FAILED", "cublasCreate", "unable to find an engine to execute",
             "DefaultCPUAllocator")


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory, or the computer's, did not suffice for a tensor or a library's workspace."""
    # By name: importing torch takes seconds, and most errors happen before it is needed.
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in NO_MEMORY))


class NotFinite(UserError):
    """Numbers overflowed in half precision."""


def message(error: BaseException) -> str | None:
    """The line to print for an error whose cause is outside the program; None for a bug."""
    text = str(error)
    if isinstance(error, UserError):  # from a DataLoader worker it comes with the worker's traceback
        return text.rpartition("UserError: ")[2] if "Original Traceback" in text else text
    if out_of_memory(error):
        return ("out of memory: use a smaller --batch-size (in training with a larger --accumulate, or "
                "--checkpointing full)")
    if isinstance(error, MemoryError):
        return "out of memory: use a smaller --batch-size, or close other programs"
    if "DataLoader worker" in text and "killed" in text:
        return f"{text.splitlines()[0]}; perhaps for lack of memory: use --workers 0"
    if isinstance(error, OSError) and error.errno is not None:
        name = error.filename if error.filename is not None else "a file"
        hint = ADVICE.get(error.errno)
        return f"{name}: {os.strerror(error.errno)}" + (f"; {hint}" if hint else "")
    return None


class Signals:
    """While the block runs, the first Ctrl-C or SIGTERM sets `seen` and calls `first`; the next kills."""

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
        for number in self._usual:  # the default action: a Python handler waits for the running torch call
            signal.signal(number, signal.SIG_DFL)
        self.first()


def _interrupt() -> None:
    raise KeyboardInterrupt


def run(main: Callable[[], None]) -> None:
    """Call `main`. A UserError becomes one line on stderr and exit status 2; Ctrl-C and SIGTERM status 130.

    Both unwind the stack, so that open files are closed and temporary ones removed.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open until the process ends)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be undecodable
        sys.stdout.reconfigure(errors="backslashreplace")
    with Signals(_interrupt) as signals:
        try:
            main()
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            print(str(interrupt) or "interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # the reader (head, less) has ended, which is no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as error:
            if signals.seen:  # a library turned the KeyboardInterrupt into an error of its own
                print("interrupted", file=sys.stderr)
                sys.exit(130)
            line = message(error)
            if line is None:
                raise
            print("error: " + printable(line), file=sys.stderr)
            sys.exit(2)


def printable(text: str) -> str:
    """One line of at most 2,000 characters, without control characters for the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))[:2000]
