# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed files: gzip, xz and zstd, told apart by their first bytes, unpacked in memory up to a limit.

Rule 1: the input is hostile. Every fault of the data is a Damaged that says which; nothing else is raised.
Rule 2: a file is whole or it is refused: a stream that stops early, or is followed by something else, is a fault.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

from knetstatd.core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GZIP = b"\x1f\x8b"
XZ = b"\xfd7zXZ\x00"
ZSTD = b"\x28\xb5\x2f\xfd"
LZ4 = b"\x02\x21\x4c\x18"  # the legacy format, the one that the kernel reads (lz4_Frame_format.md)

# The largest module of a distribution's kernel is 20 MiB, the largest unstripped out-of-tree driver known here 400 MiB.
LIMIT = 512 << 20
_ZSTD_STEP = 1 << 17
_LZ4_BLOCK = 8 << 20


def is_packed(head: bytes) -> bool:
    """Whether a file that begins with `head` (6 bytes or more) is compressed."""
    return head.startswith((GZIP, XZ, ZSTD))


def unpack(data: bytes, limit: int = LIMIT) -> bytes:
    """The contents of compressed `data`; `data` itself where it is not compressed. At most `limit` bytes, else Damaged."""
    if data.startswith(GZIP):
        plain = _gunzip(data, limit)
    elif data.startswith(XZ):
        plain = _unxz(data, limit)
    elif data.startswith(ZSTD):
        plain = _unzstd(data, limit)
    else:
        plain = data
    if len(plain) > limit:
        raise Damaged(f"unpacks to more than {limit} bytes")
    return plain


def stream(head: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What the file that begins with `head` unpacks to, in pieces: an archive of which little is wanted is 200 MB.

    read: gives at most so many bytes of what follows `head`, none at its end. Raises Damaged, also for another format.
    """
    if head.startswith(GZIP):
        import zlib

        return _pieces(zlib.decompressobj(wbits=31), head, read)
    if head.startswith(XZ):
        import lzma

        return _pieces(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20), head, read)
    if head.startswith(ZSTD):
        return _zstd_pieces(head, read)
    if head.startswith(LZ4):
        return _lz4_pieces(head, read)
    raise Damaged("is compressed in a way that is not known here")


def _pieces(decompressor: Any, data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    while not decompressor.eof:
        try:
            piece = decompressor.decompress(data, 1 << 20)
        except Exception as e:  # zlib.error and lzma.LZMAError have no other base
            raise Damaged(f"its compressed data is damaged ({e})") from e
        data = getattr(decompressor, "unconsumed_tail", b"")
        if not piece and not data and not (data := read(1 << 16)):
            raise Damaged("its compressed data ends too early")
        yield piece


def _zstd_pieces(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    library = _libzstd()
    zstd = library.ZSTD_createDStream()
    room = ctypes.create_string_buffer(_ZSTD_STEP)
    left = 1
    try:
        while data:
            source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
            full = False
            while source.pos < source.size or full:
                target = _Buffer(ctypes.cast(room, ctypes.c_void_p), _ZSTD_STEP, 0)
                left = library.ZSTD_decompressStream(zstd, ctypes.byref(target), ctypes.byref(source))
                if library.ZSTD_isError(left):
                    raise Damaged(f"its zstd data is damaged ({library.ZSTD_getErrorName(left).decode()})")
                full = target.pos == _ZSTD_STEP
                yield room.raw[: target.pos]
            data = read(1 << 16)
        if left:
            raise Damaged("its zstd data ends too early")
    finally:
        library.ZSTD_freeDStream(zstd)


def _lz4_pieces(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    try:
        library = ctypes.CDLL("liblz4.so.1")  # libsystemd's own
    except OSError as e:
        raise Damaged("it is compressed with lz4, and liblz4.so.1 is not installed") from e
    room = ctypes.create_string_buffer(_LZ4_BLOCK)

    def take(size: int) -> bytes:
        nonlocal data
        while len(data) < size and (more := read(size - len(data))):
            data += more
        taken, data = data[:size], data[size:]
        return taken

    while len(word := take(4)) == 4:
        if word == LZ4:
            continue
        size = int.from_bytes(word, "little")
        block = take(min(size, 2 * _LZ4_BLOCK))
        made = library.LZ4_decompress_safe(block, room, len(block), _LZ4_BLOCK) if len(block) == size else -1
        if made < 0:
            raise Damaged("its lz4 data is damaged")
        yield room.raw[:made]


def _gunzip(data: bytes, limit: int) -> bytes:
    import zlib  # here and below: loaded only where a file of this kind is met

    parts, room = [], limit + 1
    while data and room > 0:
        stream = zlib.decompressobj(wbits=31)
        try:
            parts.append(stream.decompress(data, room))
        except zlib.error as e:
            raise Damaged(f"its gzip data is damaged ({e})") from e
        room -= len(parts[-1])
        if not stream.eof and room > 0:
            raise Damaged("its gzip data ends too early")
        data = stream.unused_data
    return b"".join(parts)


def _unxz(data: bytes, limit: int) -> bytes:
    import lzma

    parts, room = [], limit + 1
    while data and room > 0:
        # 128 MiB: `xz -9` needs 65 MiB to unpack (xz(1)); more is an attack.
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20)
        try:
            parts.append(stream.decompress(data, room))
        except lzma.LZMAError as e:
            raise Damaged(f"its xz data is damaged ({e})") from e
        room -= len(parts[-1])
        if not stream.eof and room > 0:
            raise Damaged("its xz data ends too early")
        data = stream.unused_data.lstrip(b"\0")  # padding between streams is zero bytes (xz-file-format 2.2)
    return b"".join(parts)


class _Buffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer (zstd.h)."""

    _fields_ = [("at", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t)]


@functools.cache
def _libzstd() -> ctypes.CDLL:
    """libzstd, which kmod itself needs for .ko.zst. The standard library reads zstd only from Python 3.14 on."""
    try:
        library = ctypes.CDLL("libzstd.so.1")
    except OSError as e:
        raise Damaged("it is compressed with zstd, and libzstd.so.1 is not installed") from e
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_freeDStream.argtypes = [ctypes.c_void_p]
    library.ZSTD_decompressStream.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Buffer), ctypes.POINTER(_Buffer)]
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


def _unzstd(data: bytes, limit: int) -> bytes:
    library = _libzstd()
    stream = library.ZSTD_createDStream()
    if not stream:
        raise Damaged("there is no memory to unpack zstd")
    try:
        plain, room = bytearray(), ctypes.create_string_buffer(_ZSTD_STEP)
        source = _Buffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
        while len(plain) <= limit:
            target = _Buffer(ctypes.cast(room, ctypes.c_void_p), _ZSTD_STEP, 0)
            # What is left of the frame: 0 at its end; frames may follow each other.
            left = library.ZSTD_decompressStream(stream, ctypes.byref(target), ctypes.byref(source))
            if library.ZSTD_isError(left):
                raise Damaged(f"its zstd data is damaged ({library.ZSTD_getErrorName(left).decode()})")
            plain += room.raw[: target.pos] if target.pos < _ZSTD_STEP else room.raw
            if source.pos == len(data) and not left:
                break
            if source.pos == len(data) and target.pos < _ZSTD_STEP:
                raise Damaged("its zstd data ends too early")
        return bytes(plain)
    finally:
        library.ZSTD_freeDStream(stream)
