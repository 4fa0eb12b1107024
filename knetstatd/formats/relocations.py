# SPDX-License-Identifier: GPL-2.0-or-later
"""Would the kernel relocate this module? What stands against it is found in the file, before a kernel meets it.

Sources: apply_relocations() of kernel/module/main.c (5.10: kernel/module.c), apply_relocate_add() of arch/x86/kernel/module.c,
klp_apply_section_relocs() of kernel/livepatch/core.c; 5.10, 6.1, 6.12 and 7.3 refuse the same for x86-64. What they write
or read outside of a section is refused too: they do not look, and die of it. Other machines' relocations are not known here.

By columns, and in C: a large driver has 700,000 relocations.
"""

from __future__ import annotations

from array import array
from itertools import compress, islice, repeat
from operator import add, gt, le
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.formats import elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from knetstatd.formats.elf import Elf, Section, Symbols

X86_64 = elf.Machine(62, 64, True)
_ROW = 24  # Elf64_Rela: offset Q, kind I, symbol I, addend q
_PIECE = _ROW << 14  # bytes that are read at once
_LIVEPATCH = 0x00100000  # SHF_RELA_LIVEPATCH, linux/module.h
_NONE, _ABS32, _ABS32_SIGNED = 0, 10, 11
# R_X86_64_* that the kernel knows (asm/elf.h), and the bytes that each changes: NONE, 64, PC32, PLT32, 32, 32S, PC64.
_WIDTH = {_NONE: 0, 1: 8, 2: 4, 4: 4, _ABS32: 4, _ABS32_SIGNED: 4, 24: 8}
_PERCPU = b".data..percpu"
# Sections that rewrite_section_headers() and layout_and_allocate() take out of what is loaded.
_LEFT_BEHIND = frozenset({b".modinfo", b"__versions", b"__version_ext_crcs", b"__version_ext_names"})
_STATIC_CALLS = b".static_call_sites"
# Modules lie 512 MB above the beginning of the upper 2 GB (MODULES_VADDR): half of that fits, wherever it is loaded.
_FAR = 1 << 28
_BESIDE, _UNLIMITED = 4096, 1 << 65


def fault(file: Elf, symbols: Symbols) -> str | None:
    """What stands against the relocations, "" for nothing; None if they are of a machine that is not known here."""
    if file.machine != X86_64:
        return None
    ends = [_UNLIMITED, *(section.size + _BESIDE for section in file.sections[1:])]
    limits = [ends[where] if where < len(ends) else _UNLIMITED for where in symbols.sections]
    relocated = set()
    for section in file.sections:
        name = file.name(section)
        if section.kind != elf.RELA and name.startswith(b".rela"):
            return "its relocations are no relocations by their type"
        if section.info >= len(file.sections) or not section.info:
            if section.kind == elf.RELA:
                return "relocations are for a section that it does not have"
            continue
        target = file.sections[section.info]
        if section.kind == elf.REL and target.flags & elf.ALLOC:
            return "'REL relocation unsupported'"
        if section.flags & _LIVEPATCH:
            if not name.startswith(b".klp.rela."):
                return "relocations for livepatch have another name"
        elif section.kind == elf.RELA:
            if name != b".rela" + file.name(target):
                return "relocations are for another section than their name says"
            if section.info in relocated and target.flags & elf.ALLOC:
                return "two sections of relocations are for one section"
            relocated.add(section.info)
            if target.flags & elf.ALLOC and (wrong := _section(file, section, target, symbols, limits)):
                return f"{wrong} (in {names.clean(name.decode('ascii', 'replace'), 80)})"
    return ""


def _section(file: Elf, section: Section, target: Section, symbols: Symbols, limits: Sequence[int]) -> str:
    """The same of one section of relocations, in the order in which __apply_relocate_add() finds it.

    limits: how far beyond the beginning of its section what a symbol is of may lie.
    """
    rela = _Rela.read(file, section)
    if unknown := set(rela.kinds) - _WIDTH.keys():
        return f"'Unknown rela relocation: {min(unknown)}'"
    if _NONE in rela.kinds:
        if not target.flags & elf.EXEC:
            return "a relocation in a table does nothing"
        rela = _Rela(*(array(column.typecode, compress(column, rela.kinds)) for column in rela))
    if not rela.offsets:
        return ""
    if max(rela.rows) >= len(limits) or 0 in rela.rows:
        return "a relocation is of a symbol that it does not have"
    widths = bytes(map(_WIDTH.__getitem__, rela.kinds))
    short = array("q", compress(rela.addends, map((4).__eq__, widths))) if 8 in widths else rela.addends
    if short and not -_FAR < min(short) <= max(short) < _FAR:
        return "'overflow in relocation'"
    places, widths, overlap = _in_order(rela.offsets, widths)
    if places[-1] + 8 > target.size and max(map(add, places, widths)) > target.size:
        return "a relocation lies outside of its section"
    if overlap:
        return "'Invalid relocation target, existing value is nonzero': two relocations are of one place"
    if target.kind != elf.NOBITS and not _are_zero(file, target, places, widths):
        return "'Invalid relocation target, existing value is nonzero'"
    if file.name(target) == _STATIC_CALLS and not _are_static_calls(symbols, rela):
        return "a static call is of something else"
    if not target.flags & elf.EXEC and _strays(symbols, rela, limits):
        return "a table has what is of no section"
    return _overflow(file, symbols, rela)


class _Rela(NamedTuple):
    """Relocations by columns."""

    offsets: array[int]
    kinds: array[int]
    rows: array[int]
    addends: array[int]

    @classmethod
    def read(cls, file: Elf, section: Section) -> _Rela:
        """Of a section, piece by piece."""
        rela, end = cls(array("Q"), array("I"), array("I"), array("q")), section.size // _ROW * _ROW
        for start in range(0, end, _PIECE):
            data = file.part(section, start, min(_PIECE, end - start))
            wide, short, signed = (elf.words(kind, data, little=True) for kind in "QIq")
            for column, more in zip(rela, (wide[0::3], short[2::6], short[3::6], signed[2::3]), strict=True):
                column.extend(more)
        return rela


def _in_order(offsets: array[int], widths: bytes) -> tuple[array[int], bytes, bool]:
    """Places by their beginning, as a compiler most often writes them; whether two of them overlap."""
    if all(map(le, map(add, offsets, widths), islice(offsets, 1, None))):
        return offsets, widths, False
    both = sorted(zip(offsets, widths, strict=True))
    offsets, widths = array("Q", (offset for offset, _ in both)), bytes(width for _, width in both)
    return offsets, widths, any(map(gt, map(add, offsets, widths), islice(offsets, 1, None)))


def _are_zero(file: Elf, target: Section, places: array[int], widths: bytes) -> bool:
    """Whether all places that are to be changed are zero. places: in order."""
    parts = [slice(0, len(places))]
    while parts:
        part = parts.pop()
        start, end = places[part.start], places[part.stop - 1] + widths[part.stop - 1]
        if end - start > _PIECE:
            middle = (part.start + part.stop) // 2
            parts += [slice(part.start, middle), slice(middle, part.stop)]
            continue
        data = file.part(target, start, end - start)
        if data.count(0) == len(data):  # as in tables of places
            continue
        here = [place - start for place in places[part]]
        wide = compress(here, map((8).__eq__, widths[part]))
        if not all(map(data.startswith, repeat(bytes(4)), here)) or not all(map(data.startswith, repeat(bytes(8)), wide)):
            return False
    return True


def _are_static_calls(symbols: Symbols, rela: _Rela) -> bool:
    """Whether static_call_module_notify() finds a key: a site's second word is of one, or its trampoline, plus two flags."""
    return all(
        offset % 8 == 0 or (symbols.name(row).startswith(("__SCK__", "__SCT__")) and 0 <= addend < 4)
        for offset, row, addend in zip(rela.offsets, rela.rows, rela.addends, strict=True)
    )


def _strays(symbols: Symbols, rela: _Rela, limits: Sequence[int]) -> bool:
    """Whether a place is of what does not lie in its symbol's section. Code may mean what lies far away; tables do not."""
    if min(rela.addends) < -_BESIDE and min(_ends(symbols, rela)) < -_BESIDE:  # no value is negative
        return True
    return any(map(gt, _ends(symbols, rela), map(limits.__getitem__, rela.rows)))


def _ends(symbols: Symbols, rela: _Rela) -> Iterable[int]:
    return map(add, map(symbols.values.__getitem__, rela.rows), rela.addends)


def _overflow(file: Elf, symbols: Symbols, rela: _Rela) -> str:
    """Whether a place has 32 bits for what does not lie in the kernel's upper 2 GB, or not in the lowest 4 GB."""
    values = symbols.values
    of = {
        kind: set(compress(rela.rows, map(kind.__eq__, rela.kinds))) for kind in (_ABS32, _ABS32_SIGNED) if kind in rela.kinds
    }
    for kind, row in ((kind, row) for kind, rows in of.items() for row in rows):
        if (where := symbols.sections[row]) == elf.LIVEPATCH:
            continue
        if where == elf.ABS:
            value = values[row]
            overflows = value >= 1 << 32 if kind == _ABS32 else 1 << 31 <= value < (1 << 64) - (1 << 31)
        elif where == elf.UNDEF:
            overflows = kind == _ABS32 and symbols.bind(row) != elf.WEAK  # the kernel's own lie there, too
        else:
            section = file.sections[where]
            name = file.name(section)
            away = not section.flags & elf.ALLOC or name in _LEFT_BEHIND or kind == _ABS32
            overflows = away and name != _PERCPU
        if overflows:
            return "'overflow in relocation type'"
    return ""


def misplaced(file: Elf, symbols: Symbols) -> bool:
    """Whether a symbol lies outside of its section."""
    sizes = dict(enumerate(section.size for section in file.sections)) | dict.fromkeys(
        (elf.UNDEF, elf.LIVEPATCH, elf.ABS, elf.COMMON), 1 << 64
    )
    return any(map(gt, symbols.values, map(sizes.__getitem__, symbols.sections)))
