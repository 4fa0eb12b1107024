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
import time
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind
from knetstatd.dkms import dkms_tree
from knetstatd.system import documents, files, process

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from knetstatd.state.paths import Places

PACE = 0.02  # seconds between two looks: a fast disk takes 50 MB meanwhile
_RESERVE, _LARGEST_RESERVE = 64 << 20, 1 << 30  # bytes
_MOST = 32 << 30  # bytes; the largest packages take 600 MB
_FIRST = 1.0  # seconds; what is compiled faster takes less than the reserve
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
            reserve = _reserve(free)
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


def _reserve(free: int) -> int:
    """How many of the free bytes of a file system must stay free."""
    return max(min(max(free // 4, _RESERVE), free // 2, _LARGEST_RESERVE), free - _MOST)


class Peak:
    """The most that a directory was seen to hold. To look takes at most a fiftieth of the time."""

    def __init__(self, directory: Path) -> None:
        self.bytes = 0
        self._directory = directory
        self._next = time.monotonic() + _FIRST

    def look(self) -> None:
        """Looks, if it is time."""
        if (begin := time.monotonic()) >= self._next:
            self.bytes = max(self.bytes, held(self._directory))
            end = time.monotonic()
            self._next = end + max(_FIRST, 50 * (end - begin))


def held(directory: Path) -> int:
    """The bytes that all below a directory takes of its disk."""
    taken = 0
    for where, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                taken += os.lstat(os.path.join(where, name)).st_blocks * 512
    return taken


class Need(NamedTuple):
    """What the last build of a package took, in bytes, 0 if not known. taken: at most, to compile.  made: the result."""

    taken: int = 0
    made: int = 0


def remembered(places: Places, package: str) -> Need:
    """What is remembered of the last build of a package."""
    document = documents.read(places.room(package))
    try:
        return Need() if document is None else Need(*(max(0, document.integer(name)) for name in Need._fields))
    except documents.Malformed:
        return Need()


def remember(places: Places, package: str, need: Need) -> None:
    """Keeps it. One that was too short to be looked at takes no more than what it made, and a little. Raises OSError."""
    places.room(package).parent.mkdir(parents=True, exist_ok=True)
    files.write_json(places.room(package), need._asdict(), durable=False)


def refuse_full(root: Path, places: Places, kernel: str, package: str, compiled: Path) -> None:
    """Raises BuildError, before anything is made, if there is too little room somewhere. compiled: where it is compiled."""
    need = remembered(places, package)
    modules = files.inside(root, f"/lib/modules/{kernel}")
    # The stage holds a copy, the archive, and what is unpacked to sign it; dkms's tree and the kernel's one each.
    wanted = ((compiled, max(need.taken, need.made) * 5 // 4), (places.state, 4 * need.made),
              (dkms_tree.tree(root), need.made), (modules, need.made))  # fmt: skip
    least: dict[int, tuple[Path, int, bool]] = {}
    for path, size in wanted:
        there = next(place for place in (path, *path.parents) if os.path.isdir(place))
        device = os.stat(there).st_dev
        first, sum_, is_compiled = least.get(device, (there, 0, False))
        least[device] = first, sum_ + size, is_compiled or path == compiled
    for path, size, is_compiled in least.values():
        now = os.statvfs(path)
        free = now.f_bavail * now.f_frsize
        usable = free - _reserve(free) if is_compiled and size else free  # a compilation that takes more is ended
        if usable < size or free < _RESERVE:
            least_free = max(size + free - usable, _RESERVE)
            why = f": the last build of {package} took {need.taken >> 20} MiB" if usable < size else ""
            what = f"only {free >> 20} MiB of {path} are free, {least_free >> 20} MiB are wanted{why}"
            raise BuildError(Kind.DISK, what, "", _FIX.format(place=path))


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
