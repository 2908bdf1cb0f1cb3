"""Temporary folders that vanish even when the process that made them was killed.

Each process has one folder in the system's temporary folder, with a lock file in it that it holds until it
ends, however it ends (flock(2): the operating system lets go of it). Its temporary folders lie in there.
Whoever makes such a folder first sweeps away those that nobody holds. A process number in the name would not
do: numbers are reused, and containers that share a folder count their own.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ..compiler.errors import OutputError

PREFIX, LOCK = "bitsmith-scratch-", "held-by-a-process"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new empty folder, deleted after the block. Raises OutputError when none can be made."""
    place = scratch_place()
    with _output_errors():
        place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def scratch_place() -> Path:
    """A path where nothing is yet; what is put there is deleted at the end of the process, if not before.

    Raises OutputError when the temporary folder cannot be written.
    """
    with _output_errors():
        root = tempfile.gettempdir()
        if not _made(os.getpid(), root).is_dir():  # something cleans up old temporary files
            _made.cache_clear()
        return _made(os.getpid(), root) / uuid.uuid4().hex


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot make a temporary folder: {error.strerror or error}. Set TMPDIR to another place"
        ) from None


@cache
def _made(process: int, root: str) -> Path:
    """The folder of this process in `root`; a fork is another process and has its own."""
    sweep(Path(root))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        lock = _locked(folder)
        if lock is not None:
            atexit.register(_end, process, folder, lock)
            return folder


def _locked(folder: Path) -> int | None:
    """The lock file, opened and held; None when a sweep was there first."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    held = True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held = False
    except OSError:
        pass  # a file system without locks: there nobody sweeps either
    if held and os.fstat(lock).st_nlink:
        return lock
    os.close(lock)
    return None


def _end(process: int, folder: Path, lock: int) -> None:
    if os.getpid() == process:
        _delete(folder)
        os.close(lock)


def sweep(root: Path) -> None:
    """Deletes the folders in `root` of our own user's processes that have ended."""
    with suppress(OSError):
        for entry in list(os.scandir(root)):
            if entry.name.startswith(PREFIX) and entry.is_dir(follow_symlinks=False):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    _delete_if_left(Path(entry.path))


def _delete_if_left(folder: Path) -> None:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        with suppress(OSError):
            folder.rmdir()  # only if it is empty: killed between making and locking it
        return
    with suppress(OSError):  # its process lives and holds it
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _delete(folder)
    os.close(lock)


def _delete(folder: Path) -> None:
    """All that is in the folder, the lock file last: who is killed in between leaves it to the next."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != LOCK:
                os.unlink(entry.path)
        os.unlink(folder / LOCK)
        folder.rmdir()
