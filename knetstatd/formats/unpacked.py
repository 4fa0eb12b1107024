# SPDX-License-Identifier: GPL-2.0-or-later
"""A module file's contents, to be read at any place, however it is compressed.

Rule 1: a file is unpacked once for all that is asked of it, for unpacking is most of the work: 41 MB of xz take 2 s.
Rule 2: what a large module unpacks to is not in memory as a whole. Of its 100 MB little is asked, but at its end stands where
        that is. It lies in a file without a name, in $TMPDIR or where temporary files lie; only if none can be had, or no
        more be written, it is kept in memory.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from knetstatd.core.errors import Damaged
from knetstatd.formats import compression, elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO

IN_MEMORY = 8 << 20  # bytes: one module of fifty of a distribution's is larger
_DIRECTORIES = ("/var/tmp", "/tmp")  # the first is on a disk


@contextlib.contextmanager
def source(fd: int) -> Iterator[elf.Source]:
    """The contents of a module file that is open, for the length of a block. Raises OSError, Damaged."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("is not a regular file")
    if not status.st_size:
        raise Damaged("is empty")
    if status.st_size > compression.LIMIT:
        raise Damaged(f"is larger than {compression.LIMIT} bytes")
    plain = elf.Source(fd, status.st_size)
    if not compression.is_packed(plain.at(0, min(6, plain.size))):
        yield plain
        return
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as packed, contextlib.closing(_Store(compression.pieces(packed.read))) as store:
        yield store.source()


class _Store:
    """Pieces, put together in memory, or in a file if they are many."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._size, self._limit = 0, IN_MEMORY
        try:
            for piece in pieces:
                self._add(piece)
        except BaseException:
            self.close()
            raise

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        self._parts.append(piece)
        if self._size <= self._limit:
            return
        self._file = self._file or _nameless()
        try:
            if self._file is None:
                raise OSError
            while self._parts:
                part = memoryview(self._parts[0])[self._file.write(self._parts[0]) :]
                self._parts[:1] = [bytes(part)] if part else []
        except OSError:  # there is no room: what is written goes back into memory, and the rest stays there
            self._limit = compression.LIMIT
            if self._file is not None:
                written = self._size - sum(map(len, self._parts))
                self._parts.insert(0, os.pread(self._file.fileno(), written, 0))
                self._file.close()
                self._file = None

    def source(self) -> elf.Source:
        """All of it."""
        if self._file is None:
            return elf.Source(-1, 0, b"".join(self._parts))
        return elf.Source(self._file.fileno(), self._size)

    def close(self) -> None:
        """Gives the room back."""
        if self._file is not None:
            self._file.close()


def _nameless() -> IO[bytes] | None:
    """A file that nobody else can open and that is gone when it is closed; None if none can be had."""
    import tempfile  # 3 MB; for large modules alone

    for directory in (os.environ.get("TMPDIR"), *_DIRECTORIES):
        if directory:
            with contextlib.suppress(OSError):
                return tempfile.TemporaryFile(dir=directory, buffering=0)
    return None
