# SPDX-License-Identifier: GPL-2.0-or-later
"""Would the kernel relocate this module? What stands against it is found in the file, before a kernel meets it.

Sources: apply_relocations() of kernel/module/main.c (5.10: kernel/module.c), apply_relocate_add() of arch/x86/kernel/module.c,
klp_apply_section_relocs() of kernel/livepatch/core.c; 5.10, 6.1, 6.12 and 7.3 refuse the same for x86-64. What they write
or read outside of a section is refused too: they do not look, and die of it. Other machines' relocations are not known here.

By columns, and in C: a large driver has 700,000 relocations.
"""

from __future__ import annotations

from array import array
from itertools import compress, pairwise, starmap
from operator import add, gt
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.formats import elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from knetstatd.formats.elf import Elf, Section, Symbols

X86_64 = elf.Machine(62, 64, True)
_ROW = 24  # Elf64_Rela: offset Q, kind I, symbol I, addend q
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
    limits = [_UNLIMITED] * len(symbols.sections)
    for row, where in enumerate(symbols.sections):
        if 0 < where < len(file.sections):
            limits[row] = file.sections[where].size + _BESIDE
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
    rela = _Rela.read(file.data(section))
    if unknown := set(rela.kinds) - _WIDTH.keys():
        return f"'Unknown rela relocation: {min(unknown)}'"
    if _NONE in rela.kinds:
        if not target.flags & elf.EXEC:
            return "a relocation in a table does nothing"
        rela = _Rela(*(array(column.typecode, compress(column, rela.kinds)) for column in rela))
    if not rela.offsets:
        return ""
    if max(rela.rows) >= len(limits) or not min(rela.rows):
        return "a relocation is of a symbol that it does not have"
    widths = list(map(_WIDTH.__getitem__, rela.kinds))
    short = [addend for addend, width in zip(rela.addends, widths, strict=True) if width == 4]
    if short and not -_FAR < min(short) <= max(short) < _FAR:
        return "'overflow in relocation'"
    ends = list(map(add, rela.offsets, widths))
    if max(ends) > target.size:
        return "a relocation lies outside of its section"
    if any(starmap(_overlap, pairwise(sorted(zip(rela.offsets, ends, strict=True))))):
        return "'Invalid relocation target, existing value is nonzero': two relocations are of one place"
    if target.kind != elf.NOBITS and not _are_zero(file.data(target), rela.offsets, widths):
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
    def read(cls, data: bytes) -> _Rela:
        data = data[: len(data) // _ROW * _ROW]
        wide, short, signed = (elf.words(kind, data, little=True) for kind in "QIq")
        return cls(wide[0::3], short[2::6], short[3::6], signed[2::3])


def _overlap(one: tuple[int, int], following: tuple[int, int]) -> bool:
    return one[1] > following[0]


def _are_zero(data: bytes, offsets: Sequence[int], widths: Iterable[int]) -> bool:
    """Whether all places that are to be changed are zero."""
    view = memoryview(data)
    wide = [offset for offset, width in zip(offsets, widths, strict=True) if width == 8]
    parts = [*((offsets, at) for at in range(4)), *((wide, at) for at in range(4, 8))]
    return not any(any(map(view[at:].__getitem__, places)) for places, at in parts)


def _are_static_calls(symbols: Symbols, rela: _Rela) -> bool:
    """Whether static_call_module_notify() finds a key: a site's second word is of one, or its trampoline, plus two flags."""
    return all(
        offset % 8 == 0 or (symbols.name(row).startswith(("__SCK__", "__SCT__")) and 0 <= addend < 4)
        for offset, row, addend in zip(rela.offsets, rela.rows, rela.addends, strict=True)
    )


def _strays(symbols: Symbols, rela: _Rela, limits: Sequence[int]) -> bool:
    """Whether a place is of what does not lie in its symbol's section. Code may mean what lies far away; tables do not."""
    ends = list(map(add, map(symbols.values.__getitem__, rela.rows), rela.addends))
    return min(ends) < -_BESIDE or any(map(gt, ends, map(limits.__getitem__, rela.rows)))


def _overflow(file: Elf, symbols: Symbols, rela: _Rela) -> str:
    """Whether a place has 32 bits for what does not lie in the kernel's upper 2 GB, or not in the lowest 4 GB."""
    values = symbols.values
    for kind, row in set(zip(rela.kinds, rela.rows, strict=True)):
        if kind not in (_ABS32, _ABS32_SIGNED) or (where := symbols.sections[row]) == elf.LIVEPATCH:
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
