# SPDX-License-Identifier: GPL-2.0-or-later
"""Which compressed modules this machine's kmod takes, read from its own files: modprobe, and the library that udev uses.

Rule: a feature is seen by a name that only the code of that feature needs. Nothing is run, so any root can be asked.

Sources: kmod 30 and 34, libkmod/libkmod-file*.c and libkmod-module.c.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 16 << 20
_PROGRAMS = ("/usr/bin/kmod", "/usr/sbin/kmod", "/usr/sbin/modprobe")
_LIBRARY = "libkmod.so.2"
_DIRECTORIES = ("/usr/lib64", "/usr/lib", "/lib64", "/lib")
# A function that the decompressor calls, and the library that has it: kmod 34 opens that only when it needs it.
_NEEDS = {"gzip": (b"gzread", "libz.so.1"), "xz": (b"lzma_code", "liblzma.so.5"), "zstd": (b"ZSTD_isError", "libzstd.so.1")}


class Kmod(NamedTuple):
    """What a program or library that inserts modules does with compressed ones.

    unpacks: the kinds that it unpacks.  asks_kernel: whether it leaves a file to a kernel that unpacks its kind (kmod 31 on).
    sized: whether it takes one zstd frame, with its size in the header, and nothing else (kmod 33 on).
    """

    path: str
    unpacks: frozenset[str]
    asks_kernel: bool
    sized: bool


@once
def installed(root: Path) -> tuple[Kmod, ...]:
    """What inserts modules on the machine under `root`: kmod and libkmod, each if it is there and can be read."""
    directories = _directories(root)
    there = frozenset(
        kind for kind, (_, library) in _NEEDS.items() if any(os.path.exists(directory / library) for directory in directories)
    )
    every = []
    for place in inputs(root):
        if (one := _features(place, files.identity(place))) is not None:
            every.append(one._replace(unpacks=one.unpacks & there))
    return tuple(every)


@once
def inputs(root: Path) -> tuple[Path, ...]:
    """The files on which that depends: the first program, and the first library, that there is."""
    programs = (files.inside(root, place) for place in _PROGRAMS)
    libraries = (directory / _LIBRARY for directory in _directories(root))
    there = (next(filter(os.path.isfile, places), None) for places in (programs, libraries))
    return tuple(path for path in there if path is not None)


def _directories(root: Path) -> list[Path]:
    """Where libraries lie."""
    triplets = (f"/usr/lib/{name}" for name in files.names(files.inside(root, "/usr/lib")) if "-linux-" in name)
    return [files.inside(root, place) for place in (*triplets, *_DIRECTORIES)]


@functools.lru_cache(maxsize=8)
def _features(path: Path, identity: files.Identity | None) -> Kmod | None:
    """Kept by the file's identity: 0.3 MB are read."""
    try:
        code = files.read(path, _LIMIT)
    except (OSError, KnetstatdError):
        return None
    unpacks = frozenset(kind for kind, (name, _) in _NEEDS.items() if name in code)
    return Kmod(os.fspath(path), unpacks, b"/sys/module/compression" in code, b"ZSTD_getFrameContentSize" in code)
