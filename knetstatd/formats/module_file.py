# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel module's file: what the kernel looks at before it decides whether to load it.

Rule: the file is hostile. Whatever is wrong with it is a ModuleFileError that names file and fault.

Formats: `.modinfo` is `key=value`, each ended by a NUL. `__versions` (MODVERSIONS) has entries of 64 bytes: an unsigned long
and a name (struct modversion_info). `__version_ext_crcs`, u32 each, and `__version_ext_names` replace it from 6.14 on
where EXTENDED_MODVERSIONS is set. The signature follows the ELF file: PKCS#7 data, 12 bytes
that tell its length, a marker (linux/module_signature.h). `.BTF` begins with struct btf_header (linux/btf.h).
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged, ModuleFileError
from knetstatd.formats import compression, elf, form
from knetstatd.formats.symvers import Export

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from knetstatd.formats.elf import Machine

_PIECE = 1 << 20
_TABLE_LIMIT = 4 << 20  # bytes; the largest .modinfo, full of aliases, has some 100 KB
_MARKER = b"~Module signature appended~\n"
_SIGNATURE = struct.Struct(">8BI")  # algo, hash, id_type, signer_len, key_id_len, three zeros, sig_len
_PKCS7 = 2
_ENTRY = 64
_SECTIONS = frozenset({b".modinfo", b".gnu.linkonce.this_module", b"__versions", b"__version_ext_crcs", b"__version_ext_names"})
# Of no matter to the kernel, or looked for whether it is loaded or not (any_section_objs()); so there may be two.
_COMPILER = re.compile(rb"^GCC: |\bclang version ")
_NOTED = frozenset({b".note.gnu.build-id", b".comment", b".BTF"})
# struct btf_header: magic, version, flags, its length; offset and size of the types, then of the strings.
_BTF_MAGIC, _BTF_HEADER = 0xEB9F, "HBBIIIII"
_BTF_SIZE = struct.calcsize(f"={_BTF_HEADER}")
_EXPORT = re.compile(rb"\0(__(?:ksymtab|crc|kstrtabns|flags)_[^\0]+)")


class Module(NamedTuple):
    """What one module's file says. Text that it does not have is empty.

    vermagic: as the kernel compares it, spaces included.  license: the first, the only one that the kernel looks at.
    crcs: the checksum of each symbol as this module was compiled, from `__versions`, None if that table is missing.
    ext_crcs: the same from the extended table.  undefined, weak: names that must, or may, be exported by others.
    common: names that no kernel accepts.  exports: what this module exports.  struct_size: bytes of its struct module.
    signature: PKCS#7 data, or what was appended in its place, None if the kernel sees none.  compiler: as it names itself.
    build_id: of the linker, in hex; it stays when a module is signed, stripped or compressed.  aliases: what udev or the
    kernel may ask for to get it.  btf: whether its type information begins as such, None if it has none.  hooks: where its
    struct module has its functions.  parameters: each with its type, as module_param() has it.  form: what stands against the
    file's form, "" for nothing; None if it was not asked for, or is not known for this machine.
    """

    name: str
    vermagic: str
    license: str
    depends: tuple[str, ...]
    import_ns: tuple[str, ...]
    srcversion: str
    version: str
    intree: bool
    crcs: Mapping[str, int] | None
    ext_crcs: Mapping[str, int] | None
    undefined: tuple[str, ...]
    weak: tuple[str, ...]
    common: tuple[str, ...]
    exports: Mapping[str, Export]
    struct_size: int
    machine: Machine
    signature: bytes | None
    compiler: str
    build_id: str
    aliases: tuple[str, ...]
    btf: bool | None
    hooks: Mapping[str, int]
    parameters: Mapping[str, str]
    form: str | None = None

    @property
    def signed(self) -> bool:
        """Whether it has a signature, whatever that is worth."""
        return self.signature is not None

    @property
    def release(self) -> str:
        """The kernel that it was compiled for: vermagic's first word."""
        return self.vermagic.partition(" ")[0]

    @property
    def flags(self) -> str:
        """vermagic from its first space on: all that is compared where checksums decide."""
        return self.vermagic[len(self.release) :]


def from_path(path: Path, *, formed: bool = False) -> Module:
    """The module in `path`, which may be compressed (gzip, xz, zstd, by content). Raises ModuleFileError.

    formed: looks at its form too, for which its code and its data are read.
    """
    with opened(path) as file:
        return read(file, os.path.basename(path), formed=formed)


class Opened(NamedTuple):
    """A module file that is open. fd: of the file as it lies there.  source: it, unpacked.  end: where its signature begins."""

    fd: int
    source: elf.Source
    end: int

    @property
    def is_plain(self) -> bool:
        """Whether the file is neither compressed nor signed."""
        return self.source.fd == self.fd and self.end == self.source.size

    def parts(self) -> Iterator[bytes]:
        """What a signature is over, piece by piece: the module, unpacked, without one."""
        return (self.source.at(at, min(_PIECE, self.end - at)) for at in range(0, self.end, _PIECE))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A module file, unpacked, for the length of a block. Raises ModuleFileError, also for what goes wrong in the block."""
    try:
        # O_NONBLOCK: a FIFO in this place must not stop the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as e:
        raise ModuleFileError("does not exist", os.fspath(path)) from e
    except (OSError, ValueError) as e:
        raise ModuleFileError(f"cannot be opened: {e}", names.show(os.fspath(path))) from e
    try:
        with elf.unpacked(fd) as source:
            yield Opened(fd, source, _unsigned_size(source))
    except OSError as e:
        raise ModuleFileError(f"cannot be read: {e.strerror}", os.fspath(path)) from e
    except Damaged as e:
        raise ModuleFileError(str(e), os.fspath(path)) from e
    finally:
        os.close(fd)


def read(opened: Opened, filename: str, *, formed: bool = False) -> Module:
    """The module in a file that is open. formed: as for `from_path`. Raises OSError, Damaged."""
    file = elf.Elf(opened.source, opened.end)
    sections = _sections(file)
    struct_module = sections.get(b".gnu.linkonce.this_module")
    if struct_module is None or struct_module.kind == elf.NOBITS:
        raise Damaged("is not a kernel module: it has no .gnu.linkonce.this_module")
    notes = (b".comment", b".note.gnu.build-id")
    comment, note = (file.data(sections[n], _TABLE_LIMIT) if n in sections else b"" for n in notes)
    info = _modinfo(file.data(sections[b".modinfo"], _TABLE_LIMIT)) if b".modinfo" in sections else {}
    symbols = elf.Symbols(file)
    open_ends = [row for row, section in enumerate(symbols.sections) if section == elf.UNDEF and row]
    name = info.get("name", [filename.partition(".ko")[0]])[0]
    labels = _labels(symbols)
    return Module(
        name=names.canonical(name),
        vermagic=info.get("vermagic", [""])[0],
        license=info.get("license", [""])[0],
        depends=tuple(word for word in info.get("depends", [""])[0].split(",") if word),
        import_ns=tuple(info.get("import_ns", ())),
        srcversion=info.get("srcversion", [""])[0],
        version=info.get("version", [""])[0],
        intree="intree" in info,
        crcs=_versions(file, file.data(sections[b"__versions"], _TABLE_LIMIT)) if b"__versions" in sections else None,
        ext_crcs=_extended_versions(file, sections),
        undefined=tuple(symbols.name(row) for row in open_ends if symbols.bind(row) != elf.WEAK),
        weak=tuple(symbols.name(row) for row in open_ends if symbols.bind(row) == elf.WEAK),
        common=_common(symbols),
        exports=_exports(file, symbols, labels, name),
        struct_size=struct_module.size,
        machine=file.machine,
        signature=_signature(opened.source, opened.end),
        compiler=_compiler(comment),
        build_id=note[16:].hex(),  # after three words and "GNU\0" (elf(5), "Notes")
        aliases=tuple(info.get("alias", ())),
        btf=_btf(file, sections[b".BTF"]) if b".BTF" in sections else None,
        hooks=form.hooks(file, symbols, struct_module),
        parameters=dict(word.partition(":")[::2] for word in info.get("parmtype", ())),
        form=form.fault(file, symbols, struct_module, name, labels) if formed else None,
    )


def _compiler(comment: bytes) -> str:
    """Who compiled the module: of what its objects were compiled by, in the order in which they were linked, the last.

    The last object is the one that kbuild makes of every module (Makefile.modfinal: .mod.o, since 6.14 .module-common.o).
    One that a vendor compiled, anywhere and long ago, is in the list, too. rustc makes no module's last object.
    """
    words = [word for word in comment.split(b"\0") if word]
    return next(filter(_COMPILER.search, reversed(words)), words[-1] if words else b"").decode("utf-8", "replace")


def parse(data: bytes, filename: str) -> Module:
    """The same for a file's contents. Raises ModuleFileError."""
    try:
        source = elf.Source(-1, 0, compression.unpack(data))
        return read(Opened(-1, source, _unsigned_size(source)), filename)
    except Damaged as e:
        raise ModuleFileError(str(e), filename) from e


def unsigned(data: bytes) -> bytes:
    """What a signature is over: a file's contents, unpacked, without one. Raises Damaged."""
    data = compression.unpack(data)
    return data[: _unsigned_size(elf.Source(-1, 0, data))]


def _unsigned_size(source: elf.Source) -> int:
    """Where the ELF file ends: before the signature, or at the end. A trailer that mod_check_sig() refuses is a fault."""
    tail = len(_MARKER) + _SIGNATURE.size
    if source.size <= len(_MARKER) or source.at(source.size - len(_MARKER), len(_MARKER)) != _MARKER:
        return source.size
    if source.size < tail:
        raise Damaged("is damaged: its signature is incomplete")
    algo, hash_, kind, signer, key, *zeros, size = _SIGNATURE.unpack(source.at(source.size - tail, _SIGNATURE.size))
    if size >= source.size - tail or (kind == _PKCS7 and any((algo, hash_, signer, key, *zeros))):
        raise Damaged("is damaged: its signature does not parse")
    return source.size - tail - int(size)


def _signature(source: elf.Source, end: int) -> bytes | None:
    """What lies between the ELF file and the trailer. One that is not PKCS#7 counts as none (mod_check_sig(): ENOPKG)."""
    start = source.size - len(_MARKER) - _SIGNATURE.size
    if end == source.size or _SIGNATURE.unpack(source.at(start, _SIGNATURE.size))[2] != _PKCS7:
        return None
    return source.at(end, start - end)


def _sections(file: elf.Elf) -> dict[bytes, elf.Section]:
    """The sections that say what the module is. Like the kernel's find_sec(): one that is not loaded does not count.

    find_any_unique_sec() (6.8 on) counts those too.
    """
    by_name: dict[bytes, elf.Section] = {}
    count: Counter[bytes] = Counter()
    for section in file.sections:
        if section.kind == elf.NULL:
            continue
        name = file.name(section)
        if name in _NOTED:
            by_name.setdefault(name, section)
        elif name in _SECTIONS:
            count[name] += 1
            if count[name] > 1:
                raise Damaged(f"is damaged: it has two sections {name.decode()}")
            if section.flags & elf.ALLOC:
                by_name[name] = section
    return by_name


def _modinfo(data: bytes) -> dict[str, list[str]]:
    if data and not data.endswith(b"\0"):
        raise Damaged("is damaged: its .modinfo does not end")
    values: dict[str, list[str]] = {}
    for entry in data.split(b"\0"):
        key, equals, value = entry.partition(b"=")
        if equals:
            values.setdefault(key.decode("utf-8", "replace"), []).append(value.decode("utf-8", "replace"))
    return values


def _versions(file: elf.Elf, data: bytes) -> dict[str, int]:
    crcs: dict[str, int] = {}
    word = 8 if file.wide else 4
    for start in range(0, len(data) // _ENTRY * _ENTRY, _ENTRY):
        name, nul, _ = data[start + word : start + _ENTRY].partition(b"\0")
        if not nul:
            raise Damaged("is damaged: a name in its checksum table does not end")
        (crc,) = file.unpack("Q" if file.wide else "I", data[start : start + word])
        crcs.setdefault(name.decode("utf-8", "backslashreplace"), crc)
    return crcs


def _extended_versions(file: elf.Elf, sections: dict[bytes, elf.Section]) -> dict[str, int] | None:
    crcs, text = sections.get(b"__version_ext_crcs"), sections.get(b"__version_ext_names")
    if crcs is None and text is None:
        return None
    if crcs is None or text is None:
        raise Damaged("is damaged: half of its extended checksum table is missing")
    data, ends = file.data(crcs, _TABLE_LIMIT), file.data(text, _TABLE_LIMIT).split(b"\0")
    count = len(data) // 4
    if len(ends) - 1 < count:
        raise Damaged("is damaged: its extended checksum table has fewer names than checksums")
    by_name: dict[str, int] = {}
    for name, crc in zip(ends, file.unpack(f"{count}I", data[: count * 4]), strict=False):
        by_name.setdefault(name.decode("utf-8", "backslashreplace"), crc)
    return by_name


def _btf(file: elf.Elf, section: elf.Section) -> bool | None:
    """What btf_parse_hdr() asks first: the header, and that what it names lies in the section."""
    if not section.size:
        return None
    data = file.data(section._replace(size=min(section.size, _BTF_SIZE)))
    if len(data) < _BTF_SIZE:
        return False
    magic, version, flags, length, types, types_size, strings, strings_size = file.unpack(_BTF_HEADER, data)
    ends = (length, length + types + types_size, length + strings + strings_size)
    return (magic, version, flags) == (_BTF_MAGIC, 1, 0) and max(ends) <= section.size


def _common(symbols: elf.Symbols) -> tuple[str, ...]:
    rows = [row for row, section in enumerate(symbols.sections) if section == elf.COMMON]
    return tuple(name for name in map(symbols.name, rows) if not name.startswith("__gnu_lto"))


def _labels(symbols: elf.Symbols) -> dict[str, int]:
    """The labels that EXPORT_SYMBOL() leaves (linux/export.h, linux/export-internal.h): each one's row."""
    wanted = {match.start(1) for match in _EXPORT.finditer(symbols.strings)}
    return {symbols.name(row): row for row, name in enumerate(symbols.names) if name in wanted} if wanted else {}


def _exports(file: elf.Elf, symbols: elf.Symbols, labels: dict[str, int], module: str) -> dict[str, Export]:
    """What the module exports, from those labels."""

    def target(label: str) -> bytes:
        return symbols.target(labels[label]) if label in labels else b""

    exports = {}
    for label, row in labels.items():
        kind, _, name = label[2:].partition("_")
        section = symbols.sections[row]
        if kind == "ksymtab" and 0 < section < len(file.sections):
            # The section tells the licence, and in newer kernels (7.2 for one) a byte of flags.
            gpl_only = file.name(file.sections[section]) == b"__ksymtab_gpl"
            gpl_only |= bool(target(f"__flags_{name}")[:1].strip(b"\0"))
            namespace = target(f"__kstrtabns_{name}").partition(b"\0")[0].decode("utf-8", "replace")
            exports[name] = Export(_crc(file, symbols, labels.get(f"__crc_{name}")), module, gpl_only, namespace)
    return exports


def _crc(file: elf.Elf, symbols: elf.Symbols, row: int | None) -> int:
    """A checksum: until 5.18 the label's own value, since 5.19 a word in `__kcrctab`; 0 if there is none."""
    if row is None:
        return 0
    if symbols.sections[row] == elf.ABS:
        return symbols.value(row) & 0xFFFFFFFF
    word = symbols.target(row)[:4]
    return file.unpack("I", word)[0] if len(word) == 4 else 0
