# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes that come in pieces, to be read at any place.

Rule: many are not in memory as a whole. They lie in a file without a name, in $TMPDIR or where temporary files lie; only if
none can be had, or no more be written, they are kept in memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

IN_MEMORY = 8 << 20  # bytes: one module of fifty of a distribution's is larger
_DIRECTORIES = ("/var/tmp", "/tmp")  # the first is on a disk


class Spool:
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
            self._limit = sys.maxsize
            if self._file is not None:
                written = self._size - sum(map(len, self._parts))
                self._parts.insert(0, os.pread(self._file.fileno(), written, 0))
                self._file.close()
                self._file = None

    def contents(self) -> tuple[int, int, bytes | None]:
        """The file's descriptor and size, or -1, the size and the bytes."""
        if self._file is None:
            return -1, self._size, b"".join(self._parts)
        return self._file.fileno(), self._size, None

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
