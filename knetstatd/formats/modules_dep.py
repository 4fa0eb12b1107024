# SPDX-License-Identifier: GPL-2.0-or-later
"""What depmod(8) wrote for a kernel: which file modprobe takes for a module, and which others it loads first.

modules.dep has one line per module name, `FILE: NEEDED NEEDED…`, relative to the kernel's directory or absolute; a module
that lies in two places has one line, that of the place which depmod.d(5) prefers. modprobe reads the same lines from
modules.dep.bin, so a file counts as chosen only if both name it.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection

_LIMIT = 32 << 20  # bytes; 0.7 MB for 4,200 modules
_OWN = b"\nkernel/"
# Not searched for a module's file: what the kernel brings, and what leads out of the directory.
_NOT_ADDED = ("kernel", "build", "source")
_LINE = re.compile(rb"^(?:[^\n:]*/)?([^\n:/]+)\.ko(?:\.(?:gz|xz|zst))?:", re.MULTILINE)


class Listed(NamedTuple):
    """One line of modules.dep. listed: the file as the line has it.  file: the same, with every symlink followed.

    added: of the modules that modprobe loads first, the files that did not come with the kernel.
    needed: all of them, in the order in which modprobe inserts them: the line's last one first (libkmod-module.c).
    """

    listed: bytes
    file: Path
    added: tuple[Path, ...]
    needed: tuple[Path, ...]


class Tables:
    """depmod's tables of the kernel whose directory is `tree`; `depmod_ran` is False if depmod never did."""

    def __init__(self, root: Path, tree: Path) -> None:
        self._root = root
        self.tree = tree
        self._text = _read(files.followed(root, tree / "modules.dep"))
        self.depmod_ran = bool(self._text)
        self._directories: dict[bytes, Path] = {}
        self._entries: dict[str, Listed | None] = {}
        self._shipped: dict[str, list[Path]] = {}

    @functools.cached_property
    def _order(self) -> bytes:
        return _read(files.followed(self._root, self.tree / "modules.order"))

    @functools.cached_property
    def _canonical_order(self) -> bytes:
        return self._order.replace(b"-", b"_")

    @functools.cached_property
    def _builtin(self) -> bytes:
        return _read(files.followed(self._root, self.tree / "modules.builtin")).replace(b"-", b"_")

    @functools.cached_property
    def _index(self) -> bytes:
        return _read(files.followed(self._root, self.tree / "modules.dep.bin"))

    @functools.cached_property
    def _added(self) -> dict[bytes, list[Path]]:
        return _files(self._root, self.tree)

    def entry(self, module: str) -> Listed | None:
        """The line of a module; `-` and `_` are the same in its name."""
        if module not in self._entries:
            self._entries[module] = self._entry(module)
        return self._entries[module]

    def _entry(self, module: str) -> Listed | None:
        start = self._line(module)
        if start < 0:
            return None
        end = self._text.find(b"\n", start)
        file, _, needed = self._text[start : end if end >= 0 else None].partition(b":")
        others = needed.split()
        added = tuple(self._path(name) for name in others if not name.startswith(b"kernel/"))
        return Listed(file, self._path(file), added, tuple(self._path(name) for name in reversed(others)))

    def has(self, module: str) -> bool:
        """Whether modprobe knows a module of that name."""
        return self._line(module) >= 0

    def builtin(self, module: str) -> bool:
        """Whether the kernel has a module of that name inside of itself."""
        return b"/" + _stem(module) + b".ko\n" in self._builtin

    @functools.cached_property
    def _lines(self) -> dict[bytes, int]:
        """Where the line of each module starts; of two lines the first counts."""
        matches = list(_LINE.finditer(self._text.replace(b"-", b"_")))
        return {match[1]: match.start() for match in reversed(matches)}

    def _line(self, module: str) -> int:
        """Where the line of a module starts, -1 if there is none."""
        return self._lines.get(_stem(module), -1)

    def shipped(self, module: str) -> list[Path]:
        """The files of that module name that the kernel itself brought, whichever one modprobe takes."""
        if module not in self._shipped:
            self._shipped[module] = self._in_order(module)
        return self._shipped[module]

    def _in_order(self, module: str) -> list[Path]:
        text, name = self._canonical_order, b"/" + _stem(module) + b".ko\n"
        shipped = []
        at = text.find(name)
        while at >= 0:
            line = self._order[self._order.rfind(b"\n", 0, at) + 1 : at + len(name) - 1]
            paths = (self._path(line + suffix.encode()) for suffix in names.SUFFIXES)
            shipped += [path for path in paths if path.is_file()]
            at = text.find(name, at + 1)
        return shipped

    def in_tree(self, count: int) -> list[str]:
        """Some `count` to 2 * `count` of the files that the kernel itself brought, spread over all of them, relative to `tree`.

        From modules.order where depmod has not run; that leaves out how a file is compressed.
        """
        text = b"\n%b\n" % (self._text or self._order)
        step = max(1, text.count(_OWN) // count)
        # Not split into lines: the process would never give back the memory of thousands of small strings.
        starts = [match.start() + 1 for match in itertools.islice(re.finditer(_OWN, text), None, None, step)]
        return [os.fsdecode(text[at : text.find(b"\n", at)].partition(b":")[0]) for at in starts]

    def is_indexed(self, entry: Listed) -> bool:
        """Whether modules.dep.bin, which modprobe reads, names the same file."""
        return entry.listed + b":" in self._index

    def exporters(self, symbols: Collection[str]) -> dict[str, str] | None:
        """The module that exports each of these symbols, of those that a module exports; None if depmod's table is missing.

        modules.symbols has lines like `alias symbol:NAME MODULE`.
        """
        text = _read(files.followed(self._root, self.tree / "modules.symbols"))
        if not text:
            return None
        exporters = {}
        for symbol in symbols:
            alias = b"\nalias symbol:" + os.fsencode(symbol) + b" "
            if (at := text.find(alias)) >= 0:
                end = text.find(b"\n", at + len(alias))
                exporters[symbol] = os.fsdecode(text[at + len(alias) : end if end >= 0 else None])
        return exporters

    def added(self, module: str) -> list[Path]:
        """The files of that module name that did not come with the kernel (updates, extra, …), in no order."""
        return self._added.get(_stem(module), [])

    def _path(self, name: bytes) -> Path:
        """Where a line's file really is. The directory is followed once for all its files."""
        cut = name.rfind(b"/") + 1
        directory, last = name[:cut], os.fsdecode(name[cut:])
        if directory not in self._directories:
            text = os.fsdecode(directory)
            here = text if text.startswith("/") else f"{files.below(self._root, self.tree)}/{text}"
            self._directories[directory] = files.inside(self._root, here)
        path = self._directories[directory] / last
        if os.path.islink(path) or last == "..":
            return files.followed(self._root, path)
        return path


def _files(root: Path, tree: Path) -> dict[bytes, list[Path]]:
    """Every module file under `tree` that did not come with the kernel, by the module's name."""
    by_module: dict[bytes, list[Path]] = {}
    for where, directories, names_here in os.walk(tree):
        if where == os.fspath(tree):
            directories[:] = [name for name in directories if name not in _NOT_ADDED]
        for name in names_here:
            if module := names.module_of(name):
                by_module.setdefault(_stem(module), []).append(_real(root, Path(where, name)))
    return by_module


def _real(root: Path, path: Path) -> Path:
    return files.followed(root, path) if os.path.islink(path) else path


def _stem(module: str) -> bytes:
    return os.fsencode(names.canonical(module))


def _read(path: Path) -> bytes:
    try:
        return files.read(path, _LIMIT)
    except (OSError, KnetstatdError):
        return b""
