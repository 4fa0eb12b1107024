# SPDX-License-Identifier: GPL-2.0-or-later
"""The room that a compilation may take on disks that others use too, and the way to take it back.

Rule 1: a compilation leaves a reserve free wherever it can write, and is ended when it does not. It is a stranger's program,
        and a full disk would harm everybody else. The unit forbids what takes room faster than this looks (fallocate(2)).
        In /tmp anybody can write, as long as a compilation runs and no longer: what others take there is not held against it.
Rule 2: what it leaves is removed whatever its modes and its depth, by its owner.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.system import process

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PACE = 0.02  # seconds between two looks: a fast disk takes 50 MB meanwhile
_RESERVE, _LARGEST_RESERVE = 64 << 20, 1 << 30  # bytes
_MOST = 32 << 30  # bytes; the largest packages take 600 MB
_FIX = "df -h -i {place}"


class _Place(NamedTuple):
    """A file system at the start. bytes, files: what must stay free of it; files is 0 if it does not count them.

    spare: if others write there, the bytes and files that the compilation may have below `path`.
    """

    path: Path
    bytes: int
    files: int
    spare: tuple[int, int] | None


class Room:
    """The room in some directories, as of now. Those that do not exist are left out. shared: where others write, too."""

    def __init__(self, directories: Iterable[Path], shared: Iterable[Path] = ()) -> None:
        self._places = []
        for path, others in [*((path, False) for path in directories), *((path, True) for path in shared)]:
            try:
                now = os.statvfs(path)
            except OSError:
                continue
            free = now.f_bavail * now.f_frsize
            reserve = max(min(max(free // 4, _RESERVE), free // 2, _LARGEST_RESERVE), free - _MOST)
            files = now.f_favail // 4 if now.f_files else 0
            self._places.append(_Place(path, reserve, files, (free - reserve, now.f_favail - files) if others else None))

    def check(self) -> None:
        """Raises BuildError if less than the reserve is free anywhere. A few microseconds."""
        for place in self._places:
            now = os.statvfs(place.path)
            free = now.f_bavail * now.f_frsize
            if free < place.bytes:
                left = f"only {free >> 20} MiB of {place.path} are free; {place.bytes >> 20} MiB must stay free for others"
            elif now.f_favail < place.files:
                left = f"only {now.f_favail} more files fit on {place.path}; {place.files} must stay free for others"
            else:
                continue
            if place.spare is not None and _is_less(place.path, *place.spare):
                continue
            raise BuildError(Kind.DISK, f"the compilation was ended: {left}", "", _FIX.format(place=place.path))


def _is_less(directory: Path, most_bytes: int, most_files: int) -> bool:
    """Whether all below a directory is less than that; False if it cannot be seen."""
    blind: list[OSError] = []
    taken = count = 0
    for where, directories, names in os.walk(directory, onerror=blind.append):
        for name in (*directories, *names):
            with contextlib.suppress(FileNotFoundError):
                taken += os.lstat(os.path.join(where, name)).st_blocks * 512
            count += 1
        if taken >= most_bytes or count >= most_files > 0:
            return False
    return all(isinstance(error, FileNotFoundError) for error in blind)


def clear(path: Path) -> bool:
    """Removes a file or a tree; True if it is gone. The programs take any depth, and follow no link."""
    for argv in (["chmod", "-R", "u+rwx", "--"], ["rm", "-rf", "--"]):
        if not os.path.lexists(path):
            return True
        if argv[0] == "rm" or (os.path.isdir(path) and not os.path.islink(path)):
            process.run([*argv, os.fspath(path)], timeout=600, limit=4096)
    return not os.path.lexists(path)
