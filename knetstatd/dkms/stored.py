# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in the form of xz, gzip and zstd whose contents are stored as they are: any program unpacks them, and nothing is spent.

Also a program: `stored.py SUFFIX FILE` replaces FILE by FILE.SUFFIX. It needs nothing but the standard library.

Sources: The .xz File Format 1.1.0 (tukaani.org); LZMA2's uncompressed chunks, lzma2_decoder.c of XZ Utils; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_CHUNK = 1 << 16  # bytes; more has no place in an LZMA2 chunk


def _chunks(source: BinaryIO) -> Iterator[bytes]:
    while data := source.read(_CHUNK):
        yield data


def _crc(data: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _number(value: int) -> bytes:
    """As xz writes one: seven bits in a byte, the lowest first."""
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*made, value))


def xz(source: BinaryIO) -> Iterator[bytes]:
    """One block, with CRC32 as the kernel's own decompressor wants it."""
    flags = b"\0\1"  # CRC32
    header = _padded(b"\2\0\x21\1\x10")  # twelve bytes; one filter: LZMA2, with a dictionary of 1 MiB
    yield b"\xfd7zXZ\0" + flags + _crc(flags)
    yield header + _crc(header)
    size = check = 0
    written = len(header) + 4
    for data in _chunks(source):
        yield struct.pack(">BH", 2 if size else 1, len(data) - 1) + data  # the first one empties the dictionary
        size, check, written = size + len(data), zlib.crc32(data, check), written + 3 + len(data)
    written += 1
    yield b"\0" + bytes(-written % 4) + struct.pack("<I", check)
    index = _padded(b"\0\1" + _number(written + 4) + _number(size))
    ending = struct.pack("<I", (len(index) + 4) // 4 - 1) + flags
    yield index + _crc(index) + _crc(ending) + ending + b"YZ"


def gz(source: BinaryIO) -> Iterator[bytes]:
    """Without a name and a time."""
    packer = zlib.compressobj(0, wbits=31)
    yield from (packer.compress(data) for data in _chunks(source))
    yield packer.flush()


def zst(source: BinaryIO) -> Iterator[bytes]:
    """A frame with a window of 128 KiB, without size and checksum."""
    yield b"\x28\xb5\x2f\xfd\x00\x38"
    yield from (struct.pack("<I", len(data) << 3)[:3] + data for data in _chunks(source))
    yield b"\1\0\0"  # the last block, of nothing


FORMS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {"xz": xz, "gz": gz, "zst": zst}


def replace(suffix: str, path: str) -> None:
    """Replaces a file by one in that form, with the suffix. Raises OSError, KeyError."""
    target = f"{path}.{suffix}"
    with open(path, "rb") as source, open(target, "wb") as f:
        f.writelines(FORMS[suffix](source))
    os.unlink(path)


if __name__ == "__main__":
    replace(*sys.argv[1:])
