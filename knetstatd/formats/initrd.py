# SPDX-License-Identifier: GPL-2.0-or-later
"""The added modules that lie inside a kernel's initial RAM disk: at boot it is those that are loaded, not the installed ones.

Rule: an initrd is read as a stream. Only an added module's own file is ever held in memory.

Format: cpio archives in a row, with zero bytes between them, the last of them compressed (Documentation/driver-api/
early-userspace/buffer-format.rst). `lsinitramfs` gives names alone, `unmkinitramfs` writes 200 MB to the disk.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, ModuleFileError
from knetstatd.formats import compression, module_file
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_CPIO = (b"070701", b"070702")
_HEADER = 110
_LONGEST_NAME = 4096
_MODULE = re.compile(rf"(?:\./)?(?:usr/)?lib/modules/[^/]+/(kernel/)?.*?([^/]+){names.KO}")


class Inside(NamedTuple):
    """What is in an initrd. builds: the added modules' build IDs, or `mark`s, by name; "" for one that cannot be read.

    own: the names of the kernel's own modules, each between spaces: thousands, of which few are ever asked for.
    """

    builds: Mapping[str, str]
    own: str

    def has_own(self, module: str) -> bool:
        """Whether the kernel's own module of that name is in it."""
        return f" {module} " in self.own


def mark(contents: bytes) -> str:
    """What tells a module without a build ID from another, by its contents without a signature."""
    import hashlib  # 3 MB; few modules have no build ID

    return hashlib.sha256(contents).hexdigest()


def contents(initrd: Path) -> Inside:
    """The modules in a file. Raises Damaged."""
    found, own = {}, []
    try:
        with open(initrd, "rb") as f:
            for name, data in _modules(f):
                if data is None:
                    own.append(names.canonical(name))
                    continue
                try:
                    found[names.canonical(name)] = module_file.parse(data, name).build_id or mark(module_file.unsigned(data))
                except ModuleFileError:
                    found[names.canonical(name)] = ""
    except OSError as e:
        raise Damaged(f"cannot be read: {e.strerror}") from e
    return Inside(found, f" {' '.join(own)} ")


def _modules(file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    while head := file.read(6):
        if head.startswith(b"\0"):
            start = file.tell() - len(head)
            zeros = head + file.read(4096)
            file.seek(start + len(zeros) - len(zeros.lstrip(b"\0")))
        elif head.startswith(_CPIO):
            file.seek(-len(head), os.SEEK_CUR)
            yield from _archive(_Stream(iter(lambda: file.read(1 << 16), b""), file))
        else:
            yield from _archive(_Stream(compression.stream(head, file.read)))
            return


class _Stream:
    """Bytes that come in pieces, taken in order. file: where they come from without being unpacked, to be left in place."""

    def __init__(self, pieces: Iterator[bytes], file: BinaryIO | None = None) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self._file = file

    def take(self, size: int, *, keep: bool = True) -> bytes:
        """The next `size` bytes; none of them where they are only to be passed over."""
        parts = []
        while size:
            if not self._rest:
                if (piece := next(self._pieces, None)) is None:
                    raise Damaged("ends before its contents do")
                self._rest = memoryview(piece)
            part = self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part)
            if keep:
                parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Gives back to the file what was read of it and not taken."""
        if self._file is not None:
            self._file.seek(-len(self._rest), os.SEEK_CUR)


def _archive(stream: _Stream) -> Iterator[tuple[str, bytes | None]]:
    """The modules of one archive; the added ones with their contents."""
    while True:
        header = stream.take(_HEADER)
        try:
            size, named = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            size, named = 0, 0
        if not header.startswith(_CPIO) or not 0 < named <= _LONGEST_NAME:
            raise Damaged("is damaged: this is no cpio archive")
        name = stream.take(named)[:-1].decode("utf-8", "surrogateescape")
        stream.take(-(_HEADER + named) % 4, keep=False)
        match = _MODULE.fullmatch(name)
        added = match is not None and not match[1]
        if added and size > compression.LIMIT:
            raise Damaged(f"has a module larger than {compression.LIMIT} bytes")
        data = stream.take(size, keep=added)
        if name == "TRAILER!!!":
            stream.close()
            return
        stream.take(-size % 4, keep=False)
        if match and size:
            yield match[2], data if added else None


def fix(root: Path, kernel: str, initrd: Path) -> str:
    """The command that makes `initrd` anew on this distribution."""
    if files.inside(root, "/usr/sbin/update-initramfs").exists():
        return f"Run: update-initramfs -u -k {kernel}"
    return f"Run: dracut --force /{initrd.relative_to(root)} {kernel}"
