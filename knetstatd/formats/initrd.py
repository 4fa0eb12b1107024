# SPDX-License-Identifier: GPL-2.0-or-later
"""The added modules that lie inside a kernel's initial RAM disk: at boot it is those that are loaded, not the installed ones.

Rule 1: an initrd is read as a stream, to its end. Only an added module's own file is ever held in memory.
Rule 2: what the kernel would not unpack is Damaged. What could not be read, or not be unpacked here, is not.

Format: cpio archives in a row, with zero bytes between them; any of them may be compressed, each with its archives whole
(init/initramfs.c, unpack_to_rootfs(); Documentation/driver-api/early-userspace/buffer-format.rst). Several files that a boot
loader names are one after the other.

Our own reader: `lsinitramfs`, the oracle of the tests, gives names alone, and `unmkinitramfs` writes 200 MB to the disk.
"""

from __future__ import annotations

import errno
import os
import re
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from knetstatd.core import names, roots
from knetstatd.core.errors import Damaged
from knetstatd.formats import compression, elf, kernel_image, module_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# What of a kernel's configuration makes it unpack which kind (usr/Kconfig).
OPTIONS = {kind: f"RD_{kind.upper()}" for kind in ("gzip", "bzip2", "lzma", "xz", "lzo", "lz4", "zstd")}
_CPIO = (b"070701", b"070702")
_HEADER = 110
_LONGEST_NAME = 4096
_BLOCK = 1 << 13
_PIECE = 1 << 20
_MOST = 2 << 30  # bytes, packed or unpacked: a file of zeros has no end that anybody waits for
_MODULE = re.compile(rf"(?:\./)?(?:usr/)?lib/modules/([^/]+)/(kernel/)?.*?([^/]+){names.KO}", re.DOTALL)


class Inside(NamedTuple):
    """What is in an initrd. copies: the added modules' `mark`s by name; "" for one that cannot be read.

    own: the names of the kernel's own modules, each between spaces: thousands, of which few are ever asked for.
    refused: of the added modules that are compressed, why the kernel would not unpack them.  init: whether there is a program
    to start: if the end is cut off between two archives, all else is gone without a trace.
    foreign: a kernel that it has modules of, if it has none of this one; "" for none.
    """

    copies: Mapping[str, str]
    own: str
    refused: Mapping[str, str]
    init: bool
    foreign: str

    def has_own(self, module: str) -> bool:
        """Whether the kernel's own module of that name is in it."""
        return f" {module} " in self.own


def mark(contents: bytes) -> str:
    """`mark_of` for a module in memory, unpacked and without a signature. Raises Damaged."""
    return mark_of(elf.Source(-1, 0, contents), len(contents))


def mark_of(source: elf.Source, end: int) -> str:
    """What tells a module's copies from others: a digest of its contents without a signature, which stands first; their size; a
    digest of what a kernel keeps in memory. Raises OSError, Damaged.

    source: the module, unpacked.  end: where its signature begins.
    """
    import hashlib  # 3 MB; few initrds have an added module

    file, whole, kept = elf.Elf(source, end), hashlib.sha256(), hashlib.sha256()
    for at in range(0, end, _PIECE):
        whole.update(source.at(at, min(_PIECE, end - at)))
    for section in file.sections:
        if section.flags & elf.ALLOC and section.kind != elf.NOBITS:
            for at in range(0, section.size, _PIECE):
                kept.update(file.part(section, at, min(_PIECE, section.size - at)))
    return f"{whole.hexdigest()} {end} {kept.hexdigest()}"


def is_copy(mark_of_copy: str, mark_of_file: str) -> bool:
    """Whether a copy is of a file. It may have been stripped, as dracut does (strip(1), --strip-debug)."""
    copy, size, kept = _parts(mark_of_copy)
    file, its_size, its_kept = _parts(mark_of_file)
    return copy == file or (size < its_size and kept == its_kept)


def _parts(mark_: str) -> tuple[str, int, str]:
    contents, _, rest = mark_.partition(" ")
    size, _, kept = rest.partition(" ")
    return contents, int(size[:20]) if size.isdecimal() else 0, kept


def contents(initrds: Sequence[Path], kernel: str, kinds: Sequence[str] = tuple(OPTIONS)) -> Inside:
    """The modules of `kernel` in the files that are its initrd, from the first to the last. Raises OSError, Damaged.

    kinds: those that the kernel unpacks.
    """
    copies: dict[str, str] = {}
    refused: dict[str, str] = {}
    own, init, is_known, foreign = [], False, False, ""
    for path in initrds:
        with roots.regular(path) as f:
            start, size = kernel_image.section(f, b".initrd") or _whole(f)  # UAPI.5: a unified kernel image
            f.seek(start)
            source = _Source(_pieces(f, size))
            if not source.head(1):
                raise Damaged("is empty")
            for name, data in _files(source, kinds):
                init = init or name in ("init", "./init")
                is_known = is_known or name.removeprefix("./").removeprefix("usr/").startswith(f"lib/modules/{kernel}/")
                match = _MODULE.fullmatch(name)
                if match is None:
                    continue
                if match[1] != kernel:
                    foreign = match[1]
                    continue
                module = names.canonical(match[3])
                if data is None:
                    own.append(module)
                    continue
                refused.pop(module, None)
                if compression.is_packed(data) and (why := compression.refused(data[:8])):
                    refused[module] = why
                try:
                    copies[module] = mark(module_file.unsigned(data))
                except Damaged:
                    copies[module] = ""
    return Inside(copies, f" {' '.join(own)} ", refused, init, "" if is_known else foreign)


def _pieces(file: BinaryIO, size: int | None) -> Iterator[bytes]:
    """What follows in the file, `size` bytes or all."""
    while data := file.read(_BLOCK if size is None else min(_BLOCK, size)):
        size = None if size is None else size - len(data)
        yield data


def _whole(file: BinaryIO) -> tuple[int, None]:
    """The offset and the length of an initrd that is a file of its own."""
    file.seek(0)
    if file.read(2) == b"MZ":
        raise Damaged("has no initrd inside")
    return 0, None


class _Source:
    """Bytes that come in pieces, taken in order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = _MOST
        self._rest = memoryview(b"")

    def _more(self) -> bytes:
        """The next piece, b"" at the end. Raises OSError for more than any initrd has."""
        piece = next(self._pieces, b"")
        self._left -= len(piece)
        if self._left < 0:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return piece

    def head(self, size: int) -> bytes:
        """The next `size` bytes, which stay where they are; fewer at the end."""
        while len(self._rest) < size and (piece := self._more()):
            self._rest = memoryview(bytes(self._rest) + piece)
        return bytes(self._rest[:size])

    def take(self, size: int, *, keep: bool = True) -> bytes:
        """The next `size` bytes; none of them if they are only to be passed over."""
        parts = []
        while size:
            if not self._rest:
                if not (piece := self._more()):
                    raise Damaged("ends before its contents do")
                self._rest = memoryview(piece)
            part = self._rest[:size]
            self._rest = self._rest[len(part) :]
            size -= len(part)
            if keep:
                parts.append(part)
        return b"".join(parts)

    def skip_zeros(self) -> None:
        """Passes over the zero bytes that come next in what is at hand."""
        rest = bytes(self._rest)
        self._rest = memoryview(rest.lstrip(b"\0"))

    def unpacked(self, kind: str) -> Iterator[bytes]:
        """What the compressed stream that begins here unpacks to; then this goes on behind it."""
        stream = compression.Stream(kind, bytes(self._rest), lambda _: self._more())
        yield from stream
        self._rest = memoryview(stream.rest)


def _files(source: _Source, kinds: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    """The regular files of all archives; the contents of added modules. kinds: those that may be compressed here."""
    while head := source.head(8):
        if not head[0]:
            source.skip_zeros()
        elif head.startswith(_CPIO):
            yield from _archive(source)
        elif (kind := compression.kind(head)) and kind in kinds:
            if why := compression.refused(head):
                raise Damaged(f"cannot be unpacked by the kernel: {why}")
            yield from _files(_Source(source.unpacked(kind)), ())
        elif kind and kinds:
            raise Damaged(f"is compressed with {kind}, which this kernel does not unpack")
        else:
            raise Damaged("is damaged: this is no cpio archive, and not compressed in a way that a kernel knows")


def _archive(source: _Source) -> Iterator[tuple[str, bytes | None]]:
    """The regular files of one archive."""
    while True:
        header = source.take(_HEADER)
        try:
            mode, size, named = (int(header[at : at + 8], 16) for at in (14, 54, 94))
        except ValueError:
            mode = size = named = 0
        if not header.startswith(_CPIO) or not 0 < named <= _LONGEST_NAME:
            raise Damaged("is damaged: this is no cpio archive")
        name = source.take(named)[:-1].decode("utf-8", "surrogateescape")
        source.take(-(_HEADER + named) % 4, keep=False)
        match = _MODULE.fullmatch(name)
        added = match is not None and not match[2]
        if added and size > compression.LIMIT:
            raise Damaged(f"has a module larger than {compression.LIMIT} bytes")
        data = source.take(size, keep=added)
        if name == "TRAILER!!!":
            return
        source.take(-size % 4, keep=False)
        # A link to another place has its target for contents, which is no module: `copies` has it as one that cannot be read.
        if size or mode & 0o170000 == 0o120000 or name.endswith("init"):
            yield name, data if added else None
