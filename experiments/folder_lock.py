"""One writer to a folder at a time. The lock is the process's: it is gone when that ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Hold the folder's lock; where the system has no such locks (Windows), nothing is held.

    Raises:
        ValueError: another process, or another part of this one, holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (directory / FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{directory} is being written by another process; wait for it, or stop it") from None
        yield
