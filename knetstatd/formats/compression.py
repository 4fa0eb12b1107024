# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed files, told apart by their first bytes and unpacked in pieces, up to a limit.

Rule 1: the input is hostile. Every fault of the data is a Damaged that says which; nothing else is raised. LibraryMissing,
        which is one too, says that the fault is this machine's: a library is not installed.
Rule 2: a file is whole or it is refused: a stream that stops early, or is followed by something else, is a fault.
Rule 3: a library is imported when the first file of its kind is met: most machines have files of one kind.

Sources: RFC 1952; xz-file-format.txt; RFC 8878; lz4_Frame_format.md (legacy frame); lzop 1.04, lzop.c; the kernel's
lib/decompress*.c, which take one stream each.
"""

from __future__ import annotations

import abc
import io
from typing import TYPE_CHECKING, Any

from knetstatd.core.errors import Damaged, LibraryMissing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GZIP = b"\x1f\x8b"
XZ = b"\xfd7zXZ\x00"
ZSTD = b"\x28\xb5\x2f\xfd"
LZ4 = b"\x02\x21\x4c\x18"  # the legacy format, the one that the kernel reads
LZO = b"\x89LZO\x00\r\n\x1a\n"
# As the kernel does (lib/decompress.c, compressed_formats); what follows these bytes is the decompressor's matter.
_KINDS = {GZIP: "gzip", b"BZ": "bzip2", b"\x5d\x00": "lzma", XZ[:2]: "xz", LZO[:2]: "lzo", LZ4[:2]: "lz4", ZSTD[:2]: "zstd"}

# The largest module of a distribution's kernel is 20 MiB, the largest unstripped out-of-tree driver known here 400 MiB.
LIMIT = 512 << 20
# A kernel packs itself with a dictionary of 128 MiB from 6.12 on (scripts/xz_wrap.sh), and xz needs a little more; yet more is
# an attack. The kernel and libzstd keep to as much for zstd's window.
_WINDOW = 128 << 20
_MEMORY = _WINDOW + (1 << 20)
_PIECE = 1 << 20
_PART = 1 << 12  # what follows a stream is copied: a file may be thousands of empty ones
_LZ4_BLOCK = 8 << 20
_LZO_BLOCK = 256 << 10
_CHECKS = {4: "CRC64", 10: "SHA-256"}


def kind(head: bytes) -> str:
    """How a file that begins with `head` (2 bytes or more) is compressed; "" if it is not, or in a way that no kernel reads."""
    return _KINDS.get(head[:2], "")


def is_packed(head: bytes) -> bool:
    """Whether a module file that begins with `head` (6 bytes or more) is compressed: kmod knows three kinds."""
    return head.startswith((GZIP, XZ, ZSTD))


def refused(head: bytes) -> str:
    """Why the kernel's own decompressor refuses a stream that begins with `head` (8 bytes) and others take; "" if it does not.

    lib/xz/xz_dec_stream.c, dec_stream_header(): no check, or CRC32. kernel/module/decompress.c and lib/decompress_inflate.c
    pass over a name in gzip's header, and over nothing else.
    """
    if head.startswith(XZ) and len(head) > 7 and (check := head[7]) > 1:
        return f"its check is {_CHECKS.get(check, f'number {check}')}, and the kernel takes CRC32 alone"
    if head.startswith(GZIP) and len(head) > 3 and head[3] & 0x16:
        return "its header has fields that the kernel does not pass over"
    return ""


def unpack(data: bytes, limit: int = LIMIT) -> bytes:
    """The contents of a compressed module; `data` itself if it is not compressed. At most `limit` bytes, else Damaged."""
    if is_packed(data):
        return b"".join(pieces(io.BytesIO(data).read, limit))
    if len(data) > limit:
        raise Damaged(f"unpacks to more than {limit} bytes")
    return data


def pieces(read: Callable[[int], bytes], limit: int = LIMIT) -> Iterator[bytes]:
    """The same of a compressed module, piece by piece; iteration raises Damaged.

    read: gives at most so many bytes of the file, from its beginning on, none at the end.
    """
    size, rest = 0, read(_PART)
    packed, is_xz = kind(rest), rest.startswith(XZ)
    while rest:
        stream = Stream(packed, rest, read)
        for piece in stream:
            if (size := size + len(piece)) > limit:
                raise Damaged(f"unpacks to more than {limit} bytes")
            yield piece
        rest, zeros = stream.rest or read(_PART), 0
        # Between xz streams, and at the end, there may be zero bytes, four or a multiple (xz-file-format 2.2).
        while rest and is_xz and not rest[0]:
            behind = rest.lstrip(b"\0")
            zeros += len(rest) - len(behind)
            rest = behind or read(_PART)
        if zeros % 4:
            raise Damaged("has damaged xz data (zero bytes behind a stream)")


class Stream:
    """One compressed stream, of a kind that `kind` gives, to be iterated over once: what it unpacks to, in pieces.

    head: its beginning.  read: gives at most so many bytes of what follows that, none at the end.  rest: when the last piece
    was given, what was read and does not belong to the stream. Iteration raises Damaged.
    """

    def __init__(self, kind: str, head: bytes, read: Callable[[int], bytes] = lambda size: b"") -> None:
        self.kind = kind
        self.rest = b""
        self._head = head
        self._read = read

    def __iter__(self) -> Iterator[bytes]:
        unpacker, data = _unpacker(self.kind), self._head
        while not unpacker.eof:
            try:
                piece = unpacker.decompress(data, _PIECE)
            except Exception as e:  # the libraries' errors have no other base
                raise Damaged(f"has damaged {self.kind} data ({e})") from e
            data = getattr(unpacker, "unconsumed_tail", b"")
            if piece:
                yield piece
            elif not unpacker.eof and not data and not (data := self._read(_PART)):
                if getattr(unpacker, "may_end", False):
                    break
                raise Damaged(f"has {self.kind} data that ends too early")
        self.rest = unpacker.unused_data


def _unpacker(kind: str) -> Any:
    """An object like zlib.decompressobj() or lzma.LZMADecompressor()."""
    match kind:
        case "gzip":
            import zlib

            return zlib.decompressobj(wbits=31)
        case "xz" | "lzma":
            import lzma

            return lzma.LZMADecompressor(lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE, memlimit=_MEMORY)
        case "bzip2":
            import bz2

            return bz2.BZ2Decompressor()
        case "zstd":
            return _Zstd()
        case "lz4":
            return _Lz4()
        case "lzo":
            return _Lzo()
    raise Damaged("is compressed in a way that is not known here")


class _Zstd:
    """One zstd frame. The standard library reads zstd only from Python 3.14 on."""

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError as e:
            raise LibraryMissing("zstd", "python3-zstandard") from e
        self._frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        self._left = memoryview(b"")

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data) + bytes(self._left)

    def decompress(self, data: bytes, _: int) -> bytes:
        """In steps of 1 KiB, which unpack to 32 MiB at most: a block of 4 bytes can stand for 128 KiB."""
        self._left = memoryview(data) if data else self._left
        piece = b""
        while self._left and not piece and not self._frame.eof:
            step, self._left = self._left[:1024], self._left[1024:]
            piece = self._frame.decompress(step)
        return piece


class _Blocks:
    """A stream of blocks with their lengths before them. eof: its end was met.  may_end: it may end here without one."""

    def __init__(self) -> None:
        self.eof = self.may_end = False
        self.unused_data = b""

    def decompress(self, data: bytes, _: int) -> bytes:
        self.unused_data += data
        pieces, at = [], 0
        while not self.eof and (done := self._next(memoryview(self.unused_data)[at:])) is not None:
            pieces.append(done[1])
            at += done[0]
        self.unused_data = self.unused_data[at:]
        self.may_end = self.may_end and not self.unused_data
        return b"".join(pieces)

    @abc.abstractmethod
    def _next(self, data: memoryview) -> tuple[int, bytes] | None:
        """How many bytes of `data` the next block has, and what it unpacks to; None if it is not complete."""


class _Lz4(_Blocks):
    """lib/decompress_unlz4.c: the magic number may come again; a length of 0 ends it, and so does the end of the file."""

    def __init__(self) -> None:
        super().__init__()
        import ctypes

        try:
            self._library = ctypes.CDLL("liblz4.so.1")  # apt's own and libsystemd's; no Python library reads legacy frames
        except OSError as e:
            raise LibraryMissing("lz4", "liblz4-1") from e
        self._room = ctypes.create_string_buffer(_LZ4_BLOCK)
        self.may_end = True

    def _next(self, data: memoryview) -> tuple[int, bytes] | None:
        self.may_end = True
        if len(data) < 4:
            return None
        size = int.from_bytes(data[:4], "little")
        if data[:4] == LZ4:
            return 4, b""
        if not size:
            self.eof = True
            return 0, b""
        if size > 2 * _LZ4_BLOCK:
            raise ValueError(f"a block of {size} bytes")
        if len(data) < 4 + size:
            return None
        made = self._library.LZ4_decompress_safe(bytes(data[4 : 4 + size]), self._room, size, _LZ4_BLOCK)
        if made < 0:
            raise ValueError("a block does not unpack")
        return 4 + size, self._room.raw[:made]


class _Lzo(_Blocks):
    """lib/decompress_unlzo.c: a header, then blocks, each with both lengths and a checksum of what it unpacks to."""

    def __init__(self) -> None:
        super().__init__()
        try:
            import lzo
        except ImportError as e:
            raise LibraryMissing("lzo", "python3-lzo") from e
        self._unpack: Callable[[bytes, bool, int], bytes] = lzo.decompress
        self._flags: int | None = None

    def _next(self, data: memoryview) -> tuple[int, bytes] | None:
        if self._flags is None:
            return self._header(data)
        if len(data) < 4:
            return None
        size = int.from_bytes(data[:4], "big")
        if not size:
            self.eof = True
            return 4, b""
        if len(data) < 8:
            return None
        packed = int.from_bytes(data[4:8], "big")
        if not 0 < packed <= size <= _LZO_BLOCK:
            raise ValueError(f"a block of {packed} bytes for {size}")
        start = 12 if self._flags & 0x101 else 8
        if packed < size and self._flags & 0x202:
            start += 4
        if len(data) < start + packed:
            return None
        block = bytes(data[start : start + packed])
        return start + packed, block if packed == size else self._unpack(block, False, size)

    def _header(self, data: memoryview) -> tuple[int, bytes] | None:
        if len(data) < 35:
            return None
        if data[: len(LZO)] != LZO or int.from_bytes(data[9:11], "big") < 0x0940:
            raise ValueError("its header is not lzop's")
        flags = int.from_bytes(data[17:21], "big")
        name = 33 + (4 if flags & 0x800 else 0)
        if len(data) <= name or len(data) < (end := name + 1 + data[name] + 4):
            return None
        self._flags = flags
        return end, b""
