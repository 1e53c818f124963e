"""One writer to a folder at a time. The lock is the process's: it is gone when that ends, however it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = ".lock"


class Locked(ValueError):
    """Another process, or another part of this one, writes there."""


@contextmanager
def only_writer(directory: Path, patience: float = 0.3) -> Iterator[None]:
    """Hold the folder's lock; where the system has no such locks (Windows), nothing is held.

    Args:
        patience: seconds to wait for it. `is_locked` holds it for an instant, and shall turn nobody away.

    Raises:
        Locked: another process, or another part of this one, holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    end = time.monotonic() + patience
    with (directory / FILE).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    told = f"{directory} is being written by another process; wait for it, or stop it"
                    raise Locked(told) from None
                time.sleep(0.02)
        yield


def is_locked(directory: Path) -> bool:
    """Whether someone holds the folder's lock now."""
    if not (directory / FILE).is_file():
        return False
    try:
        with only_writer(directory, patience=0):
            return False
    except Locked:
        return True
