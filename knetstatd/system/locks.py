# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own locks: files, flock(2).

Rule 1: a lock belongs to an open file: a program that inherits the descriptor keeps it held, however its starter ends.
Rule 2: only the owner can open a lock file (mode 0600): a user who could open it could hold it for ever.
Rule 3: everybody may know who is at work: a user who cannot open the file finds it in /proc/locks, by device and inode. There
        others' locks stand, too: none of them may be taken for ours.
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
_LISTED = re.compile(
    rb"^\d+: (FLOCK|POSIX|OFDLCK) +\S+ +WRITE +(-?\d{1,10}) ([0-9a-f]{1,5}):([0-9a-f]{1,5}):(\d{1,20}) ", re.MULTILINE
)
# Bytes of the list that are read: 20,000 locks. One user may have a million, and the time to read them grows with the square.
_MOST = 1 << 20


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
        return listed(lock, listing, b"FLOCK") is not None
    except (OSError, KnetstatdError):
        return False


def listed(path: Path, listing: Path, *kinds: bytes) -> int | None:
    """The pid of the process that holds a write lock of such a kind (0 or -1: it has none here), None for nobody.

    listing: /proc/locks. A holder behind a flood of others' locks is not found.
    Raises OSError if there is no such file to look at, and KnetstatdError if there is no list.
    """
    with files.opened(path, os.O_PATH) as fd:
        inode, device = os.fstat(fd).st_ino, _device(fd)
    try:
        with open(listing, "rb") as f:
            table = f.read(_MOST)
    except OSError as e:
        raise KnetstatdError(f"{e.strerror}", "/proc/locks") from e
    for kind, pid, major, minor, number in _LISTED.findall(table):
        if kind in kinds and int(number) == inode and os.makedev(int(major, 16), int(minor, 16)) == device:
            return int(pid)
    return None


def _device(fd: int) -> int:
    """The device by which the kernel lists a file: its mount's (proc_pid_mountinfo(5)), on btrfs not the one in its status.

    To take any device without a number for the same would be wrong: a user can make a file with any inode in /dev/shm.
    """
    mount = re.search(r"^mnt_id:\s*(\d+)$", files.text(Path(f"/proc/self/fdinfo/{fd}")) or "", re.MULTILINE)
    mounts = files.text(Path("/proc/self/mountinfo"), 4 << 20) or ""
    listed = re.search(rf"^{mount[1]} \d+ (\d+):(\d+) ", mounts, re.MULTILINE) if mount else None
    return os.makedev(int(listed[1]), int(listed[2])) if listed else os.fstat(fd).st_dev  # no such mount: in a chroot


@contextlib.contextmanager
def locked(lock: Path, wait: float) -> Iterator[int]:
    """A lock for the length of a block. wait: seconds. Raises KnetstatdError if it is not free in time."""
    fd = hold(lock, wait)
    try:
        yield fd
    finally:
        os.close(fd)
