# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own locks: files in the runtime directory, flock(2).

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

BUILD = "build.lock"
DAEMON = "daemon.lock"


def hold(runtime: Path, name: str, wait: float = 0.0) -> int:
    """Takes a lock in the runtime directory; returns its descriptor. Raises KnetstatdError when it is not free in time."""
    runtime.mkdir(parents=True, exist_ok=True)
    fd = os.open(runtime / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                raise KnetstatdError(
                    "another run of knetstatd holds this lock", os.fspath(runtime / name), "Wait for it to end"
                ) from None
            time.sleep(0.1)


def held(runtime: Path, name: str) -> bool:
    """Whether somebody holds the lock; looks without keeping it."""
    try:
        with files.opened(runtime / name, os.O_RDONLY) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def locked(runtime: Path, name: str, wait: float) -> Iterator[int]:
    """A lock for the length of a block; raises KnetstatdError when it is not free in time."""
    fd = hold(runtime, name, wait)
    try:
        yield fd
    finally:
        os.close(fd)
