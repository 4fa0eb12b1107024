# SPDX-License-Identifier: GPL-2.0-or-later
"""Relocatable ELF files (elf(5)), 32 and 64 bits, both byte orders: sections and symbols, read piece by piece.

Rule 1: the file is hostile. Every offset and size is checked against the file, every fault is a Damaged.
Rule 2: what the kernel refuses for its form is refused here. Kernels differ; the strictest of 5.10 to 7.3 decides. Functions
        are those of kernel/module/main.c, in 5.10 kernel/module.c: elf_validity_check() until 6.1 is what later ones do in
        the parts of elf_validity_cache_copy().
Rule 3: only the pieces asked for are read; a driver may be 100 MB, what is wanted of it is a few KB.
Rule 4: a file that no linker writes (sections that overlap, text that cannot be executed) is refused too, though a kernel
        may take it, and die of it: of 12,457 modules of six Debian kernels not one is like that.

Our own reader, because pyelftools is 23 times slower per module (measured); it is the oracle of the tests.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import struct
import sys
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core.errors import Damaged
from knetstatd.formats import compression
from knetstatd.system.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator

# A section that is read whole is a few KB, and 5 MB in the largest driver known; this limits what a hostile file can cost.
_SECTION_LIMIT = 64 << 20
# The kernel's own names have at most 511 (KSYM_NAME_LEN); thousands of symbols may share one name of megabytes.
_LONGEST_NAME = 1024
_MACHINES = {
    3: "i386",
    8: "mips",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86-64",
    183: "arm64",
    243: "riscv",
    258: "loongarch",
}
RELOCATABLE, EXECUTABLE = 1, 2  # e_type
NULL, SYMTAB, STRTAB, RELA, NOBITS, REL = 0, 2, 3, 4, 8, 9  # sh_type
WRITE, ALLOC, EXEC = 1, 2, 4  # sh_flags
UNDEF, LIVEPATCH, ABS, COMMON = 0, 0xFF20, 0xFFF1, 0xFFF2  # st_shndx
WEAK = 2  # ELF_ST_BIND


class Machine(NamedTuple):
    """What code is for. machine: e_machine of elf.h."""

    machine: int
    bits: int
    little: bool

    def __str__(self) -> str:
        name = _MACHINES.get(self.machine, f"machine {self.machine}")
        return f"{name}, {self.bits} bits, {'little' if self.little else 'big'} endian"


class Source:
    """Bytes by offset: from an open file, which stays the caller's, or from memory."""

    def __init__(self, fd: int, size: int, data: bytes | None = None) -> None:
        self.fd = fd
        self._data = data
        self.size = size if data is None else len(data)

    def at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`; Damaged if the file has fewer."""
        if offset + size > self.size:
            raise Damaged("is truncated or damaged: it ends before its contents do")
        if self._data is not None:
            return self._data[offset : offset + size]
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise Damaged("changed while it was read")
        return data


@contextlib.contextmanager
def unpacked(fd: int) -> Iterator[Source]:
    """The contents of a module file that is open, unpacked once, for the length of a block. Raises OSError, Damaged."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("is not a regular file")
    if not status.st_size:
        raise Damaged("is empty")
    if status.st_size > compression.LIMIT:
        raise Damaged(f"is larger than {compression.LIMIT} bytes")
    plain = Source(fd, status.st_size)
    if not compression.is_packed(plain.at(0, min(6, plain.size))):
        yield plain
        return
    os.lseek(fd, 0, os.SEEK_SET)
    with open(fd, "rb", closefd=False) as packed, contextlib.closing(Spool(compression.pieces(packed.read))) as spool:
        yield Source(*spool.contents())


def words(kind: str, data: bytes, *, little: bool) -> array[int]:
    """`data` as integers of one kind (array's letters)."""
    values = array(kind, data)
    if little != (sys.byteorder == "little"):
        values.byteswap()
    return values


class Section(NamedTuple):
    """One row of the section table. name: offset into the section names.  info: of relocations, the section they change.

    address: where it will be in memory, if the linker has decided that.
    """

    name: int
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    address: int = 0


class Elf:
    """The sections of the ELF file in the first `size` bytes of `source`. kind: its e_type."""

    def __init__(self, source: Source, size: int, kind: int = RELOCATABLE) -> None:
        if size < 52 or source.at(0, 4) != b"\x7fELF":
            raise Damaged("is not an ELF file")
        ident = source.at(0, 20)
        if ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise Damaged("is damaged: unknown ELF class or byte order")
        self._source, self._known = source, dict[int, bytes]()
        self.wide, little = ident[4] == 2, ident[5] == 1
        self._order = "<" if little else ">"
        its_kind, machine = self.unpack("HH", ident[16:])
        self.machine = Machine(machine, 64 if self.wide else 32, little)
        if its_kind != kind:
            expected = "a relocatable one as modules are" if kind == RELOCATABLE else "a program as kernels are"
            raise Damaged(f"is an ELF file, but not {expected}")
        self.sections, names = self._table(size)
        if not 0 < names < len(self.sections) or self.sections[names].kind != STRTAB:
            raise Damaged("is damaged: its sections have no names")
        self._names = self.data(self.sections[names])
        if not self._names.endswith(b"\0"):
            raise Damaged("is damaged: its section names do not end")
        # elf_validity_cache_secstrings(); until 6.1 of sections in memory alone, elf_validity_check().
        if any(section.name >= len(self._names) for section in self.sections if section.kind != NULL):
            raise Damaged("is damaged: a section's name lies outside the names")

    def unpack(self, form: str, data: bytes) -> tuple[int, ...]:
        """`data` as integers, in the file's byte order (struct's letters)."""
        return struct.unpack(self._order + form, data)

    def _table(self, size: int) -> tuple[list[Section], int]:
        header = self._source.at(0, 64 if self.wide else 52)
        (start,) = self.unpack("Q", header[40:48]) if self.wide else self.unpack("I", header[32:36])
        entry, count, names = self.unpack("HHH", header[-6:])
        form = struct.Struct(self._order + ("IIQQQQIIQQ" if self.wide else "IIIIIIIIII"))
        if entry != form.size or not count:
            raise Damaged("is damaged: it has no section table")
        if start + count * entry > size:
            raise Damaged("is truncated or damaged: its section table lies outside the file")
        sections: list[Section] = []
        for name, kind, flags, address, offset, length, link, info, align, _ in form.iter_unpack(
            self._source.at(start, count * entry)
        ):
            if not sections and (kind or flags or address or length):
                raise Damaged("is damaged: its section 0 is not empty")  # elf_validity_cache_sechdrs()
            if kind not in (NULL, NOBITS) and offset + length > size:
                raise Damaged("is truncated or damaged: a section lies outside the file")
            sections.append(Section(name, kind, flags, offset, length, link, info, align, address))
        taken = [(s.offset, s.offset + s.size) for s in sections if s.kind not in (NULL, NOBITS) and s.size]
        taken = sorted([*taken, (0, len(header)), (start, start + count * entry)])
        if any(end > following for (_, end), (following, _) in pairwise(taken)):
            raise Damaged("is damaged: two of its sections overlap")
        return sections, names

    def data(self, section: Section, limit: int = _SECTION_LIMIT) -> bytes:
        """A section's contents, at most `limit` bytes."""
        if section.kind in (NULL, NOBITS):
            return b""
        if section.size > limit:
            raise Damaged(f"is damaged: a section that is a few KB in other modules has {section.size} bytes")
        return self._source.at(section.offset, section.size)

    def part(self, section: Section, offset: int, size: int) -> bytes:
        """`size` bytes of a section's contents from `offset`. A section that is too large to be read whole is Damaged."""
        if section.size > _SECTION_LIMIT:
            raise Damaged(f"is damaged: a section that is a few KB in other modules has {section.size} bytes")
        return self._source.at(section.offset + offset, size)

    def name(self, section: Section) -> bytes:
        """A section's name, empty if it lies outside the names."""
        name = self._known.get(section.name)
        if name is None:
            end = self._names.find(b"\0", section.name, section.name + _LONGEST_NAME + 1)
            if end < 0 and section.name < len(self._names):
                raise Damaged(f"is damaged: a section's name has more than {_LONGEST_NAME} bytes")
            name = self._known[section.name] = self._names[section.name : end] if end >= 0 else b""
        return name


class Symbols:
    """The one symbol table of `elf`, kept by columns: a large driver has 100,000 rows of which few matter."""

    def __init__(self, elf: Elf) -> None:
        tables = [section for section in elf.sections if section.kind == SYMTAB]
        if len(tables) != 1:
            raise Damaged("has two symbol tables" if tables else "has no symbol table; was it stripped?")
        link = tables[0].link
        if not 0 < link < len(elf.sections) or elf.sections[link].kind != STRTAB:
            raise Damaged("is damaged: its symbols have no names")
        self._elf = elf
        self._row = 24 if elf.wide else 16
        self.strings = elf.data(elf.sections[link])
        if not (self.strings.startswith(b"\0") and self.strings.endswith(b"\0")):
            raise Damaged("is damaged: its symbol names do not end")
        table = elf.data(tables[0])
        self._table = table[: len(table) // self._row * self._row]
        # Elf64_Sym: name I, info B, other B, section H, value Q, size Q; Elf32_Sym: name, value, size I, then the rest.
        self.names = self._column("I", 0)
        self.sections = self._column("H", 6 if elf.wide else 14)
        self._info = self._table[4 if elf.wide else 12 :: self._row]
        if max(self.names, default=0) >= len(self.strings):  # elf_validity_cache_strtab() of 7.3
            raise Damaged("is damaged: a symbol's name lies outside the names")
        # simplify_symbols() of 7.3; older ones read what lies behind the section table.
        if any(section >= len(elf.sections) for section in set(self.sections) - {LIVEPATCH, ABS, COMMON}):
            raise Damaged("is damaged: a symbol is of a section that it does not have")

    def _column(self, kind: str, offset: int) -> array[int]:
        values = words(kind, self._table, little=self._elf.machine.little)
        return values[offset // values.itemsize :: self._row // values.itemsize]

    def bind(self, row: int) -> int:
        """ELF_ST_BIND of a row."""
        return self._info[row] >> 4

    def name(self, row: int) -> str:
        """The name of a row."""
        start = self.names[row]
        end = self.strings.find(b"\0", start, start + _LONGEST_NAME + 1)
        if end < 0:
            raise Damaged(f"is damaged: a symbol's name has more than {_LONGEST_NAME} bytes")
        return self.strings[start:end].decode("utf-8", "backslashreplace")

    def called(self, name: str) -> str:
        """What the kernel calls that which a name names, "" if nothing has it: the first name of the same place.

        find_kallsyms_symbol() of kernel/module/kallsyms.c.
        """
        places = list(zip(self.sections, self.values, strict=True))
        place = next((place for row, place in enumerate(places) if place[0] and self.name(row) == name), None)
        return next(filter(None, (self.name(row) for row, other in enumerate(places) if other == place)), "") if place else ""

    def value(self, row: int) -> int:
        """st_value of a row: an offset into its section, or the value itself if the section is ABS."""
        wide = self._elf.wide
        start = row * self._row + (8 if wide else 4)
        return self._elf.unpack("Q" if wide else "I", self._table[start : start + (8 if wide else 4)])[0]

    @functools.cached_property
    def values(self) -> array[int]:
        """st_value of every row."""
        return self._column("Q", 8) if self._elf.wide else self._column("I", 4)

    def target(self, row: int) -> bytes:
        """What a row names, up to the end of its section; none if it names nothing in the file."""
        section = self.sections[row]
        if not 0 < section < len(self._elf.sections):
            return b""
        return self._elf.data(self._elf.sections[section])[self.value(row) :]
