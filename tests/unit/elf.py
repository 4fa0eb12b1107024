# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes kernel module files for tests: small, whole, and wrong in exactly the way a test asks for."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WRITE, ALLOC, EXEC = 1, 2, 4
PROGBITS, SYMTAB, STRTAB, RELA, NOBITS, REL = 1, 2, 3, 4, 8, 9
ABS, COMMON = 0xFFF1, 0xFFF2
LOCAL, GLOBAL, WEAK = 0, 1, 2
MAGIC = "6.1.0-1-amd64 SMP preempt mod_unload modversions "
COMPILER = "GCC: (Debian 12.2.0-14) 12.2.0"
MARKER = b"~Module signature appended~\n"


class Sec(NamedTuple):
    """A section. info: of relocations, the name of the section that they change."""

    name: str
    data: bytes
    flags: int = ALLOC
    kind: int = PROGBITS
    info: str = ""
    align: int = 1
    size: int | None = None  # in place of the data's


class Sym(NamedTuple):
    """A symbol. section: a section's name, or a number (0 undefined, ABS, COMMON)."""

    name: str
    section: str | int = 0
    value: int = 0
    bind: int = GLOBAL


def file(
    sections: Sequence[Sec],
    symbols: Sequence[Sym] = (),
    *,
    bits: int = 64,
    little: bool = True,
    machine: int = 62,
    kind: int = 1,
    strings: bytes | None = None,
    section_names: bytes | None = None,
    tables: int = 1,
) -> bytes:
    """A relocatable ELF file. strings, section_names: in place of the right ones.  tables: how many symbol tables."""
    order, wide = "<" if little else ">", bits == 64
    number = {section.name: index for index, section in enumerate(sections, 1)}
    names, rows = b"\0", struct.pack(order + ("24x" if wide else "16x"))
    for symbol in symbols:
        where = symbol.section if isinstance(symbol.section, int) else number[symbol.section]
        info = symbol.bind << 4
        if wide:
            rows += struct.pack(order + "IBBHQQ", len(names), info, 0, where, symbol.value, 0)
        else:
            rows += struct.pack(order + "IIIBBH", len(names), symbol.value, 0, info, 0, where)
        names += symbol.name.encode() + b"\0"
    every = [*sections, Sec(".strtab", names if strings is None else strings, 0, STRTAB)]
    link = len(every)
    every += [Sec(".symtab", rows, 0, SYMTAB)] * tables
    titles = b"\0"
    starts = []
    for section in (*every, Sec(".shstrtab", b"")):
        starts.append(len(titles))
        titles += section.name.encode() + b"\0"
    every.append(Sec(".shstrtab", titles if section_names is None else section_names, 0, STRTAB))
    at = 64 if wide else 52
    body, headers = b"", struct.pack(order + ("64x" if wide else "40x"))
    form = order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
    for section, start in zip(every, starts, strict=True):
        size = len(section.data) if section.size is None else section.size
        linked = {SYMTAB: link, RELA: link + 1, REL: link + 1}.get(section.kind, 0)
        info = number[section.info] if section.info else 0
        row = {SYMTAB: 24 if wide else 16, RELA: 24 if wide else 12, REL: 16 if wide else 8}.get(section.kind, 0)
        headers += struct.pack(
            form, start, section.kind, section.flags, 0, at + len(body), size, linked, info, section.align, row
        )
        if section.kind != NOBITS:
            body += section.data
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if little else 2, 1]) + bytes(9)
    sizes = (0, 64 if wide else 52, 0, 0, 64 if wide else 40, len(every) + 1, len(every))
    word = "Q" if wide else "I"
    header = ident + struct.pack(f"{order}HHI{word}{word}{word}", kind, machine, 1, 0, 0, at + len(body))
    return header + struct.pack(order + "IHHHHHH", *sizes) + body + headers


def modinfo(**values: str | Sequence[str]) -> bytes:
    """The contents of a .modinfo section."""
    pairs = [(k, v) for k, vs in values.items() for v in ([vs] if isinstance(vs, str) else vs)]
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


def versions(crcs: Mapping[str, int], *, bits: int = 64, little: bool = True) -> bytes:
    """The contents of a __versions section."""
    form = ("<" if little else ">") + ("Q56s" if bits == 64 else "I60s")
    return b"".join(struct.pack(form, crc, name.encode()) for name, crc in crcs.items())


def relocations(target: str, *rows: tuple[int, int, int, int]) -> Sec:
    """The relocations of a section. rows: offset, kind, row of the symbol table, addend; 64 bits, little endian."""
    return Sec(f".rela{target}", b"".join(struct.pack("<QIIq", *row) for row in rows), 0, RELA, target)


def this_module(name: str, size: int, bits: int = 64) -> Sec:
    """struct module as modpost leaves it."""
    data = bytes(24 if bits == 64 else 12) + name.encode()
    return Sec(".gnu.linkonce.this_module", data.ljust(size, b"\0")[:size], WRITE | ALLOC)


def module(
    name: str = "demo",
    *,
    vermagic: str | None = MAGIC,
    license: str | None = "GPL",
    crcs: Mapping[str, int] | None = None,
    ext_crcs: Mapping[str, int] | None = None,
    undefined: Sequence[str] = (),
    weak: Sequence[str] = (),
    common: Sequence[str] = (),
    exports: Mapping[str, tuple[int, str, str]] | None = None,
    old_exports: bool = False,
    struct_size: int = 1280,
    bits: int = 64,
    little: bool = True,
    machine: int = 62,
    info: Mapping[str, str | Sequence[str]] | None = None,
    compiler: str = COMPILER,
    build_id: str = "",
    more: Sequence[Sec] = (),
    more_symbols: Sequence[Sym] = (),
    hook: int = 320,
    signature: bytes | None = None,
) -> bytes:
    """A kernel module. exports: checksum, kind (`""`, `_gpl` by section, `flag` by a flag) and namespace of each name.

    old_exports: checksums as kernels before 5.19 write them.  hook: where struct module has the init function; 0 for none.
    more_symbols: their rows begin with 3.  None for vermagic, license, crcs: not there.
    """
    order = "<" if little else ">"
    values = {"license": license, "vermagic": vermagic, "name": name}
    data = modinfo(**{key: value for key, value in values.items() if value is not None}, **(info or {}))
    sections = [Sec(".modinfo", data), this_module(name, struct_size, bits), *more]
    symbols = [Sym("__this_module", ".gnu.linkonce.this_module"), Sym("init_module", ABS), *more_symbols]
    if hook and bits == 64 and little and struct_size >= hook + 8:
        sections += [Sec(".init.text", bytes(16), ALLOC | EXEC), relocations(".gnu.linkonce.this_module", (hook, 1, 2, 0))]
        symbols[1] = Sym("init_module", ".init.text")
    symbols += [Sym(symbol) for symbol in undefined] + [Sym(symbol, bind=WEAK) for symbol in weak]
    symbols += [Sym(symbol, COMMON, 8) for symbol in common]
    sections.append(Sec(".comment", b"\0" + compiler.encode() + b"\0", 0))
    if build_id:
        note = struct.pack(f"{order}III4s", 4, len(build_id) // 2, 3, b"GNU") + bytes.fromhex(build_id)
        sections.append(Sec(".note.gnu.build-id", note))
    if crcs is not None:
        sections.append(Sec("__versions", versions(crcs, bits=bits, little=little)))
    if ext_crcs is not None:
        sections.append(Sec("__version_ext_crcs", struct.pack(f"{order}{len(ext_crcs)}I", *ext_crcs.values())))
        sections.append(Sec("__version_ext_names", b"".join(key.encode() + b"\0" for key in ext_crcs)))
    text, sums, flags = b"", b"", b""
    for symbol, (crc, kind, namespace) in (exports or {}).items():
        symbols.append(Sym(f"__ksymtab_{symbol}", "__ksymtab_gpl" if kind == "_gpl" else "__ksymtab", bind=LOCAL))
        symbols.append(Sym(f"__kstrtabns_{symbol}", "__ksymtab_strings", len(text), LOCAL))
        if kind == "flag":
            symbols.append(Sym(f"__flags_{symbol}", "__kflagstab", len(flags), LOCAL))
            flags += b"\1"
        old, new = Sym(f"__crc_{symbol}", ABS, crc), Sym(f"__crc_{symbol}", "__kcrctab", len(sums), LOCAL)
        symbols.append(old if old_exports else new)
        sums += struct.pack(order + "I", crc)
        text += namespace.encode() + b"\0"
    if exports is not None:
        tables = {"__ksymtab": bytes(12), "__ksymtab_gpl": bytes(12), "__kcrctab": sums}
        tables |= {"__ksymtab_strings": text, "__kflagstab": flags}
        sections += [Sec(title, contents) for title, contents in tables.items()]
    made = file(sections, symbols, bits=bits, little=little, machine=machine)
    return made if signature is None else sign(made, signature)


def sign(made: bytes, signature: bytes, *, kind: int = 2, size: int | None = None, odd: int = 0) -> bytes:
    """`made` with a signature's trailer. size, kind, odd: in place of what belongs there."""
    trailer = struct.pack(">8BI", odd, 0, kind, 0, 0, 0, 0, 0, len(signature) if size is None else size)
    return made + signature + trailer + MARKER
