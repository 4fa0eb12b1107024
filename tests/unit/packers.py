# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents as they are compressed on a disk."""

from __future__ import annotations

import ctypes
import lzma
import subprocess


def zstd(data: bytes) -> bytes:
    library = ctypes.CDLL("libzstd.so.1")
    room = ctypes.create_string_buffer(len(data) + 1024)
    size = library.ZSTD_compress(room, ctypes.c_size_t(len(room)), data, ctypes.c_size_t(len(data)), 3)
    return room.raw[:size]


def xz(data: bytes) -> bytes:
    return lzma.compress(data, check=lzma.CHECK_CRC32)


# What the kernel unpacks an initrd of, by the program that packs it.
PROGRAMS = {
    "gzip": ["gzip", "-c"], "bzip2": ["bzip2", "-c"], "lzma": ["xz", "--format=lzma", "-c"],
    "xz": ["xz", "--check=crc32", "-c"], "lzo": ["lzop", "-c"], "lz4": ["lz4", "-lc"], "zstd": ["zstd", "-qc"],
}  # fmt: skip


def packed(kind: str, data: bytes) -> bytes:
    return subprocess.run(PROGRAMS[kind], input=data, stdout=subprocess.PIPE, check=True).stdout
