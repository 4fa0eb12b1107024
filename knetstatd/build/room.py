# SPDX-License-Identifier: GPL-2.0-or-later
"""The room that a compilation may take on disks that others use too, and the way to take it back.

Rule 1: a compilation leaves a reserve free wherever it can write, and is ended when it does not. It is a stranger's program,
        and a full disk would harm everybody else. The unit forbids what takes room faster than this looks (fallocate(2)).
Rule 2: what it leaves is removed whatever its modes and its depth, by its owner.
"""

from __future__ import annotations

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
    """A file system at the start. bytes, files: what must stay free of it; files is 0 if it does not count them."""

    path: Path
    bytes: int
    files: int


class Room:
    """The room in some directories, as of now. Those that do not exist are left out."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._places = []
        for path in directories:
            try:
                now = os.statvfs(path)
            except OSError:
                continue
            free = now.f_bavail * now.f_frsize
            reserve = min(max(free // 4, _RESERVE), free // 2, _LARGEST_RESERVE)
            self._places.append(_Place(path, max(reserve, free - _MOST), now.f_favail // 4 if now.f_files else 0))

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
            raise BuildError(Kind.DISK, f"the compilation was ended: {left}", "", _FIX.format(place=place.path))


def clear(path: Path) -> bool:
    """Removes a file or a tree; True if it is gone. The programs take any depth, and follow no link."""
    for argv in (["chmod", "-R", "u+rwx", "--"], ["rm", "-rf", "--"]):
        if not os.path.lexists(path):
            return True
        if argv[0] == "rm" or (os.path.isdir(path) and not os.path.islink(path)):
            process.run([*argv, os.fspath(path)], timeout=600, limit=4096)
    return not os.path.lexists(path)
