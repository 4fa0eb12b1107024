# SPDX-License-Identifier: GPL-2.0-or-later
"""Module.symvers: what a kernel and its modules export, and with which checksums.

One line per export, five columns between tabs: checksum, symbol, owner, kind, namespace (kernel
Documentation/kbuild/modules.rst, "Symbols From the Kernel"; kernels before 5.4 have no namespace column). A distribution's
file has 30,000 lines of which a few dozen are ever wanted, so it is read line by line and nothing else is kept.
"""

from __future__ import annotations

import io
import os
import re
import stat
from typing import IO, TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, KernelFileError
from knetstatd.formats import compression

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

LIMIT = 64 << 20  # bytes; the largest known is 2.5 MB
_KINDS = {b"EXPORT_SYMBOL": False, b"EXPORT_SYMBOL_GPL": True}
_CRC = re.compile(rb"0x[0-9a-fA-F]{8}")
_NAME = len("0x00000000\t")


class Export(NamedTuple):
    """One exported symbol. crc: 0 if the exporter was built without MODVERSIONS.

    owner: `vmlinux`, or a module's path in its build tree, without `.ko`.  namespace: "" for none.
    """

    crc: int
    owner: str
    gpl_only: bool
    namespace: str = ""

    @property
    def module(self) -> str:
        """The module that has to be loaded first, as the kernel writes its name; "" if the kernel itself has the symbol."""
        return "" if self.owner == "vmlinux" else names.canonical(self.owner.rpartition("/")[2])


def find(path: Path, wanted: Collection[str]) -> dict[str, Export]:
    """The exports among `wanted`; what is not exported is not in the answer. `path` may be compressed.

    Raises KernelFileError if the file is missing, larger than 64 MiB, or no whole Module.symvers.
    """
    try:
        with _open(path) as lines:
            return search(lines, wanted)
    except OSError as e:
        raise KernelFileError(f"cannot be read: {e.strerror}", os.fspath(path)) from e
    except Damaged as e:
        raise KernelFileError(f"is no Module.symvers: {e}", os.fspath(path), "Reinstall the kernel's headers") from e


def search(lines: IO[bytes], wanted: Collection[str]) -> dict[str, Export]:
    """The same of a file that is open, or bytes in memory. Raises Damaged."""
    keys = frozenset(name.encode("utf-8", "surrogateescape") for name in wanted)
    # A name that is wanted begins like one of these, as few others do: to look at that first takes half the time.
    width = min(map(len, keys), default=0) + 1
    near, end = {(key + b"\t")[:width] for key in keys}, _NAME + width
    exports: dict[str, Export] = {}
    # The first line is parsed whatever it says: a file of another kind is refused, not searched in vain.
    first = lines.readline()
    if not first:
        raise Damaged("it is empty")
    hits = (line for line in lines if line[_NAME:end] in near and line[_NAME : line.find(b"\t", _NAME)] in keys)
    for name, export in map(_parse, (first, *hits)):
        if name in keys:
            exports.setdefault(name.decode("utf-8", "surrogateescape"), export)
    lines.seek(-1, os.SEEK_END)
    if lines.read(1) != b"\n":
        raise Damaged("it ends in the middle of a line")
    return exports


def _open(path: Path) -> IO[bytes]:
    # O_NONBLOCK: a FIFO in this place must not stop the daemon.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        st = os.fstat(file.fileno())
        if not stat.S_ISREG(st.st_mode):
            raise Damaged("it is not a regular file")
        if st.st_size > LIMIT:
            raise Damaged(f"it is larger than {LIMIT} bytes")
        if not compression.is_packed(file.peek(6)[:6]):
            return file
        plain = io.BytesIO(compression.unpack(file.read(LIMIT), LIMIT))
    except BaseException:
        file.close()
        raise
    file.close()
    return plain


def _parse(line: bytes) -> tuple[bytes, Export]:
    columns = line.rstrip(b"\n").split(b"\t")
    if len(columns) not in (4, 5) or not _CRC.fullmatch(columns[0]) or not columns[1] or not columns[2]:
        raise Damaged(f"unexpected line {names.show(line.decode('utf-8', 'replace'), 120)}")
    crc = int(columns[0], 16)
    # Kernels before 5.12 also had EXPORT_UNUSED_SYMBOL and EXPORT_SYMBOL_GPL_FUTURE, the latter open to every licence.
    gpl_only = _KINDS.get(columns[3], columns[3] == b"EXPORT_UNUSED_SYMBOL_GPL")
    text = [column.decode("utf-8", "replace") for column in columns]
    return columns[1], Export(crc, text[2], gpl_only, text[4] if len(text) == 5 else "")
