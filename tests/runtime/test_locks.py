"""One run a folder: the second is refused, and a lock whose owner was killed is nobody's."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.locks import locked


def hold(folder: Path, said: Connection) -> None:
    with locked(folder):
        said.send("held")
        said.recv()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[multiprocessing.Process, Connection]]:
    """Another process that holds the folder until it is told to go on."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run", theirs))
    process.start()
    assert ours.recv() == "held"
    yield process, ours
    process.kill()
    process.join()


def test_the_second_is_refused_and_told_whose_it_is(owner: tuple, tmp_path: Path) -> None:
    process, pipe = owner
    with pytest.raises(UserError, match=rf"run: process {process.pid} on .* is writing here"), \
            locked(tmp_path / "run"):
        pass
    assert (tmp_path / "run/.lock").exists()  # a refused one takes nothing away
    pipe.send("go on")
    process.join()
    with locked(tmp_path / "run"):
        pass
    assert not list(tmp_path.glob("run/*"))


def test_a_killed_owners_lock_is_free(owner: tuple, tmp_path: Path) -> None:
    process, _ = owner
    process.kill()
    process.join()
    assert (tmp_path / "run/.lock").read_text().startswith(f"{process.pid} on ")
    with locked(tmp_path / "run"):
        assert (tmp_path / "run/.lock").read_text().startswith(f"{os.getpid()} on ")
    assert not (tmp_path / "run/.lock").exists()


def test_workers_that_outlive_their_trainer_hold_nothing(tmp_path: Path) -> None:
    with locked(tmp_path):
        worker = os.fork()
        if worker == 0:
            signal.pause()
            os._exit(0)
    with locked(tmp_path):
        assert os.waitpid(worker, os.WNOHANG) == (0, 0)  # still there, and yet the folder is free
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)


def test_an_empty_folder_is_taken_away_again(tmp_path: Path) -> None:
    with locked(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").exists()


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_a_file_in_the_way_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("someone else's")
    with pytest.raises(UserError, match="file in the way of this folder"), locked(tmp_path / name):
        pass
    assert (tmp_path / "file").read_text() == "someone else's"


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", cannot)
    with locked(tmp_path):
        assert "cannot be locked here" in capsys.readouterr().err
