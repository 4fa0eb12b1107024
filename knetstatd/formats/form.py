# SPDX-License-Identifier: GPL-2.0-or-later
"""Is the module's ELF file what a linker writes, and would the kernel lay it out in memory and link it?

Sources, 5.10 to 7.3: layout_and_allocate(), module_enforce_rwx_sections(), layout_sections(), percpu_modalloc(),
find_module_sections(), check_export_symbol_sections(), simplify_symbols() of kernel/module/main.c and strict_rwx.c (5.10:
kernel/module.c); add_sect_attrs() of kernel/module/sysfs.c, of which 6.12 is the first to insist; modpost's add_header() for
what struct module begins as. If kernels differ, the strictest decides.

Rule: of code and data that were changed nothing can be seen here. A kernel takes them, and may die of them: for that the
file must be compared with the one that was built.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.formats import elf, relocations

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knetstatd.formats.elf import Elf, Section, Symbols

_MEMORY = 256 << 20  # bytes; the largest driver known needs a third of it, and all modules together have 1 GB
_PERCPU = b".data..percpu"
_PERCPU_LIMIT = 32 << 10  # PCPU_MIN_UNIT_SIZE, linux/percpu.h
_TEXT, _DATA = elf.ALLOC | elf.EXEC, elf.ALLOC | elf.WRITE
# What a compiler says of these sections, whatever the processor; a kernel puts them where the flags say.
_FLAGS = {
    b".text": _TEXT, b".init.text": _TEXT, b".exit.text": _TEXT, b".data": _DATA, b".bss": _DATA,
    b".gnu.linkonce.this_module": _DATA, b".modinfo": elf.ALLOC, b"__jump_table": _DATA, b"__bug_table": _DATA,
    b"__dyndbg": _DATA, b".static_call_sites": _DATA,
}  # fmt: skip
# Where the labels of EXPORT_SYMBOL() are (linux/export.h, linux/export-internal.h).
_TABLES = {
    b"ksymtab": (b"__ksymtab", b"__ksymtab_gpl"),
    b"kstrtabns": (b"__ksymtab_strings",),
    b"crc": (b"__kcrctab", b"__kcrctab_gpl"),
    b"flags": (b"__kflagstab",),
}
_NAME_AT, _NAME_SIZE = 24, 56  # of char name[MODULE_NAME_LEN] in struct module, 64 bits


def fault(file: Elf, symbols: Symbols, this_module: Section, name: str, labels: Mapping[str, int]) -> str | None:
    """What stands against the file, "" for nothing; None if nothing does and its relocations are not known here.

    this_module: the section of struct module.  name: the module's, from .modinfo.  labels: of what it exports, with their rows.
    """
    wrong = _layout(file) or _names(file) or _this_module(file, this_module, name) or _exports(file, symbols, labels)
    if not wrong and relocations.misplaced(file, symbols):
        wrong = "a symbol lies outside of its section"
    return wrong or relocations.fault(file, symbols)


def hooks(file: Elf, symbols: Symbols, this_module: Section) -> Mapping[str, int]:
    """Where struct module has its functions (`init_module`, `cleanup_module`): by name, the offset."""
    number = file.sections.index(this_module)
    offsets = {}
    for section in file.sections:
        if section.kind == elf.RELA and section.info == number and file.wide:
            data = file.data(section)
            for start in range(0, len(data) // 24 * 24, 24):
                offset, _, row = file.unpack("QII", data[start : start + 16])
                if row < len(symbols.names):
                    offsets[symbols.name(row)] = offset
    return offsets


def _layout(file: Elf) -> str:
    size = 0
    for section in file.sections:
        name = file.name(section)
        if section.flags & (elf.WRITE | elf.EXEC) == elf.WRITE | elf.EXEC:
            return f"'section {_show(name)} has invalid WRITE|EXEC flags'"
        if section.align & (section.align - 1):
            return f"its section {_show(name)} is aligned to {section.align}, which is no power of two"
        if section.size and section.kind != elf.NULL and _odd(section, name):
            return f"its section {_show(name)} is not marked as such sections are (code, data, read-only)"
        if section.flags & elf.ALLOC or section.kind in (elf.SYMTAB, elf.STRTAB):
            align = section.align or 1
            size = (size + align - 1) // align * align + section.size
        if section.flags & elf.ALLOC and section.kind == elf.NULL and section.size:
            return "a section without a type is to be in memory"
        if name == _PERCPU and section.size > _PERCPU_LIMIT:
            return f"'Could not allocate {section.size} bytes percpu data'"
    return f"it needs {size >> 20} MB of memory" if size > _MEMORY else ""


def _odd(section: Section, name: bytes) -> bool:
    expected = _TEXT if name.startswith(b".text.") else _FLAGS.get(name)
    if expected is None:
        return False
    wrong_kind = section.kind == elf.NOBITS and expected == _TEXT
    return wrong_kind or section.flags & (elf.ALLOC | elf.WRITE | elf.EXEC) != expected


def _names(file: Elf) -> str:
    """What the names of its sections in memory say: they become files of one directory, /sys/module/NAME/sections.

    layout_symtab() puts the symbols, and their names, into memory too.
    """
    links = {section.link for section in file.sections if section.kind == elf.SYMTAB}
    every = [
        file.name(section)
        for row, section in enumerate(file.sections)
        if section.size and (section.flags & elf.ALLOC or section.kind == elf.SYMTAB or row in links)
    ]
    if b"" in every:
        return "a section in memory has no name"
    [(most, count)] = Counter(every).most_common(1) or [(b"", 0)]
    if count > 1:
        return f"it has two sections {_show(most)}"
    return "'has both .ctors and .init_array'" if {b".ctors", b".init_array"} <= set(every) else ""


def _this_module(file: Elf, section: Section, name: str) -> str:
    """modpost writes the name, and zeros for all that the kernel sets itself; what is not zero it would believe."""
    if file.machine != relocations.X86_64:
        return ""
    data = file.data(section)
    own, rest = data[_NAME_AT : _NAME_AT + _NAME_SIZE].rstrip(b"\0"), data[:_NAME_AT] + data[_NAME_AT + _NAME_SIZE :]
    if any(rest):
        return "its struct module has more in it than a name"
    return "" if own.decode("utf-8", "replace") == name else "its struct module has another name than .modinfo"


def _exports(file: Elf, symbols: Symbols, labels: Mapping[str, int]) -> str:
    """Whether the tables of what it exports are where its labels are; check_export_symbol_sections() asks for all or none."""
    for label, row in labels.items():
        kind = label[2:].partition("_")[0].encode()
        where = symbols.sections[row]
        if where in (elf.ABS, elf.UNDEF):  # until 5.18 a checksum is the label's value
            continue
        section = file.sections[where] if where < len(file.sections) else None
        if section is None or file.name(section) not in _TABLES[kind] or not section.flags & elf.ALLOC:
            return "the tables of what it exports are not where its labels are"
    return ""


def _show(name: bytes) -> str:
    return names.clean(name.decode("ascii", "replace"), 80)
