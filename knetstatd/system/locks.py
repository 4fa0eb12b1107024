# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own locks: files, flock(2).

A lock belongs to an open file: a program that inherits the descriptor keeps it held, however its starter ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def hold(lock: Path, wait: float = 0.0) -> int:
    """Takes a lock; returns its descriptor. wait: seconds. Raises KnetstatdError if it is not free in time."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                what = "another run of knetstatd holds this lock"
                raise KnetstatdError(what, os.fspath(lock), "Wait for it to end") from None
            time.sleep(0.1)


def held(lock: Path) -> bool:
    """Whether somebody holds the lock; looks without keeping it."""
    try:
        with files.opened(lock, os.O_RDONLY) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def locked(lock: Path, wait: float) -> Iterator[int]:
    """A lock for the length of a block. wait: seconds. Raises KnetstatdError if it is not free in time."""
    fd = hold(lock, wait)
    try:
        yield fd
    finally:
        os.close(fd)
