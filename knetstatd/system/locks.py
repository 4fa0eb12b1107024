# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own locks: files, flock(2).

Rule 1: a lock belongs to an open file: a program that inherits the descriptor keeps it held, however its starter ends.
Rule 2: only the owner can open a lock file (mode 0600): a user who could open it could hold it for ever.
Rule 3: everybody may know who is at work: a user who cannot open the file finds it in /proc/locks, by device and inode.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator


# "1: FLOCK  ADVISORY  WRITE 4711 08:01:2345 0 EOF" (proc_locks(5)).
_LISTED = re.compile(rb"^\d+: FLOCK +\S+ +WRITE +-?\d+ ([0-9a-f]{1,5}):([0-9a-f]{1,5}):(\d{1,20}) ", re.MULTILINE)


def hold(lock: Path, wait: float = 0.0) -> int:
    """Takes a lock; returns its descriptor. wait: seconds. Raises KnetstatdError if it is not free in time."""
    if not lock.parent.is_dir():
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.parent.chmod(0o755)  # whatever the umask: nobody else may make a file there, everybody may look
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
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
        with files.opened(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:
        return _listed(lock)
    except OSError:
        return False
    return False


def _listed(lock: Path, listing: Path = Path("/proc/locks")) -> bool:
    """Whether somebody holds a lock that this user may not open; False if that cannot be known."""
    try:
        status, table = os.stat(lock), files.read(listing, 4 << 20)
    except (OSError, KnetstatdError):
        return False
    for major, minor, inode in _LISTED.findall(table):
        # btrfs: the list has the file system's device, stat has the subvolume's; both have major 0.
        device = os.makedev(int(major, 16), int(minor, 16))
        same = device == status.st_dev or os.major(device) == os.major(status.st_dev) == 0
        if same and int(inode) == status.st_ino:
            return True
    return False


@contextlib.contextmanager
def locked(lock: Path, wait: float) -> Iterator[int]:
    """A lock for the length of a block. wait: seconds. Raises KnetstatdError if it is not free in time."""
    fd = hold(lock, wait)
    try:
        yield fd
    finally:
        os.close(fd)
