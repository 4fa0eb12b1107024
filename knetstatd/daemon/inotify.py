# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching directories: the owner of inotify.

What inotify does not tell (each tried), and what is done about it here:

* A watch belongs to an inode, not to a path. Renamed, replaced, re-pointed by a symlink or mounted over, the directory at
  the path is another one, and the old watch goes on as if nothing had happened. So `refresh` compares inodes.
* A directory that does not exist cannot be watched: its nearest existing ancestor is, until it does.
* What is created before its directory is watched is not seen: events are hints, the caller's look is the truth.
* The queue overflows (16,384 events): then everything may have changed.
* Mounting sends no event: /proc/self/mountinfo does.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, NamedTuple

try:
    from inotify_simple import INotify, flags
except ModuleNotFoundError:  # Debian has no package of it, so ours brings it along
    from knetstatd._vendor.inotify_simple import INotify, flags

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MASK = (
    flags.CREATE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.CLOSE_WRITE
    | flags.ATTRIB  # what nobody could read may be open now
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.EXCL_UNLINK
)
_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT


class Changes(NamedTuple):
    """What moved. labels: those of the watched directories concerned.  entries: names that changed, by label.

    lost: events are missing; everything may have changed.
    """

    labels: frozenset[str]
    entries: dict[str, set[str]]
    lost: bool


class _Watched(NamedTuple):
    inode: tuple[int, int]
    labels: frozenset[str]


class Watch:
    """Watches for changes in a changing set of directories.  Raises OSError if inotify cannot be had (EMFILE)."""

    def __init__(self) -> None:
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, _Watched] = {}
        self.failed: dict[str, str] = {}

    def fileno(self) -> int:
        """For the selector."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Ends all watches."""
        self._inotify.close()

    def refresh(self, wanted: Iterable[tuple[str, Path]]) -> set[str]:
        """Makes the watches be those of `wanted`, pairs of (label, directory); returns the labels newly watched.

        The caller looks at what is newly watched: it may have changed before. Directories that cannot be watched are in
        `failed`, with the reason.
        """
        self.failed = {}
        targets: dict[tuple[int, int], tuple[Path, set[str]]] = {}
        for label, path in wanted:
            place = path
            while not os.path.isdir(place) and place != place.parent:
                place = place.parent
            try:
                st = os.stat(place)
            except OSError as e:
                self.failed[label] = f"{place}: {e.strerror}"
                continue
            # Several labels may share a directory: an ancestor of two missing ones, a bind mount.
            targets.setdefault((st.st_dev, st.st_ino), (place, set()))[1].add(label)
        for wd, old in list(self._watched.items()):
            if old.inode not in targets:
                self._forget(wd, remove=True)
        known = {old.inode: wd for wd, old in self._watched.items()}
        fresh: set[str] = set()
        for inode, (place, labels) in targets.items():
            before: frozenset[str] = frozenset()
            if inode in known:
                before = self._watched[known[inode]].labels
                self._watched[known[inode]] = _Watched(inode, frozenset(labels))
            else:
                try:
                    wd = self._inotify.add_watch(os.fspath(place), _MASK)
                except OSError as e:
                    self.failed.update(dict.fromkeys(labels, f"{place}: {e.strerror}"))
                    continue
                self._watched[wd] = _Watched(inode, frozenset(labels))
            fresh |= labels - before
        return fresh

    def _forget(self, wd: int, *, remove: bool) -> None:
        self._watched.pop(wd, None)
        if remove:
            try:
                self._inotify.rm_watch(wd)
            except OSError:
                pass  # the directory went first

    def read(self) -> Changes:
        """What happened since the last call; never blocks."""
        labels: set[str] = set()
        entries: dict[str, set[str]] = {}
        lost = False
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                lost = True
                continue
            watched = self._watched.get(event.wd)
            if watched is None:
                continue
            labels |= watched.labels
            if event.name:
                for label in watched.labels:
                    entries.setdefault(label, set()).add(event.name)
            if event.mask & _GONE:
                # MOVE_SELF leaves the watch on the old inode, which would go on speaking for the path.
                self._forget(event.wd, remove=not event.mask & flags.IGNORED)
        return Changes(frozenset(labels), entries, lost)


class Mounts:
    """The mount table: readable, for a selector, when something was mounted or unmounted (proc(5), mountinfo)."""

    def __init__(self, path: str = "/proc/self/mountinfo") -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # mountinfo signals a change as an exceptional condition, which selectors does not know; an epoll of its own does.
        self._epoll = select.epoll()
        self._epoll.register(self._file, select.EPOLLPRI)
        self.read()

    def fileno(self) -> int:
        """For the selector."""
        return self._epoll.fileno()

    def read(self) -> None:
        """Takes the announcement."""
        self._epoll.poll(0)
        os.lseek(self._file, 0, os.SEEK_SET)
        while os.read(self._file, 65536):
            pass

    def close(self) -> None:
        """Closes both descriptors."""
        self._epoll.close()
        os.close(self._file)
