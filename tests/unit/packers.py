# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents as they are compressed on a disk."""

from __future__ import annotations

import ctypes
import lzma


def zstd(data: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    room = ctypes.create_string_buffer(len(data) + 1024)
    size = library.ZSTD_compress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 3)
    return room.raw[:size]


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)
