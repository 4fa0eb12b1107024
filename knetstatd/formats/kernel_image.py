# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel's boot image: what the kernel in it exports, and what it says of itself. No headers are needed for that.

Rule 1: the image is hostile. Every offset and size is checked, every fault is a Damaged. Of what is not known here, which is
        Unfamiliar, nothing follows for a module; of what is damaged follows that the kernel may not start.
Rule 2: an image unpacks to 60 MB, which lie in a nameless file (see system/spool); a few pieces of it come into memory.
Rule 3: x86-64 alone. Images of other processors have no section headers, or other tables.

Sources: Linux's Documentation/arch/x86/boot.rst; include/linux/export-internal.h and, until 6.3, include/asm-generic/export.h;
kernel/module/main.c, find_exported_symbol_in_section(); the UAPI group's specification 5, unified kernel images.
"""

from __future__ import annotations

import os
import re
import struct
from contextlib import closing
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from knetstatd.core import roots
from knetstatd.core.errors import Damaged, KernelFileError, LibraryMissing, Unfamiliar
from knetstatd.formats import compression, elf
from knetstatd.system.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ELF = b"\x7fELF"
MACHINE = elf.Machine(62, 64, little=True)
_NOTE = 7  # sh_type
_ENTRY = 12  # bytes: a value, a name and a namespace, each as its distance from the number itself
_BLOCK = 1 << 20
_OVERLAP = 1 << 12  # longer than any text that is looked for
_LONGEST = 511  # of a symbol's name, KSYM_NAME_LEN
# Until 6.x, a table for each kind; those other than the first two were left out with 5.12.
_KINDS = {
    "": b"EXPORT_SYMBOL",
    "_gpl": b"EXPORT_SYMBOL_GPL",
    "_gpl_future": b"EXPORT_SYMBOL_GPL_FUTURE",
    "_unused": b"EXPORT_UNUSED_SYMBOL",
    "_unused_gpl": b"EXPORT_UNUSED_SYMBOL_GPL",
}
_GPL_ONLY = 1  # KSYM_FLAG_GPL_ONLY of __kflagstab, 7.0 and later
# The text of /proc/version; a first link of the kernel has left one without the number of the build.
_BANNER = re.compile(rb"Linux version (\S{1,64}) [^\0\n]{1,1280}+(?=\n\0)")
_NUMBER = re.compile(rb"#\d")
_TABLE = 4 << 20  # bytes of a table of exports; the largest known has 0.2 MB


class Image(NamedTuple):
    """What a boot image says of the kernel in it.

    release: as `uname -r` prints it.  banner: the text of /proc/version, without its end of line.
    vermagic: the words that the kernel compares with a module's, the release first; "" if they are not found.
    build_id: in hex, as in /sys/kernel/notes; "" if there is none.
    symvers: what the kernel itself exports, as the lines of a Module.symvers (see formats/symvers).
    crcs: whether each export has a checksum (CONFIG_MODVERSIONS); if not they are 0.
    btf: whether the kernel has type information.  config: its configuration, b"" if it is not in there (CONFIG_IKCONFIG).
    """

    release: str
    banner: str
    vermagic: str
    build_id: str
    symvers: bytes
    crcs: bool
    btf: bool
    config: bytes


def read(path: Path) -> Image:
    """The image in a file: a bzImage, a unified kernel image with one, or a vmlinux.

    Raises KernelFileError, whose cause tells an image that cannot be read (OSError) or is damaged (Damaged) from one of a kind
    that is not known here (Unfamiliar).
    """
    try:
        with roots.regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            start, length = section(file, b".linux") or (0, size)
            with closing(Spool(_vmlinux(file, start, min(start + length, size)))) as spool:
                fd, whole, data = spool.contents()
                return _image(elf.Elf(elf.Source(fd, whole, data), whole, elf.EXECUTABLE))
    except OSError as e:
        raise KernelFileError(f"The kernel's image cannot be read: {e.strerror or e}", os.fspath(path)) from e
    except Damaged as e:
        fix = f"Run: apt install {e.package}" if isinstance(e, LibraryMissing) else ""
        raise KernelFileError(f"The kernel's image {e}", os.fspath(path), fix) from e


def section(file: BinaryIO, name: bytes) -> tuple[int, int] | None:
    """Offset and length of a section of a PE file; None if it is no PE file or has none of that name. Raises Damaged."""
    file.seek(0)
    head = file.read(0x40)
    if head[:2] != b"MZ":
        return None
    try:
        (start,) = struct.unpack_from("<I", head, 0x3C)
        file.seek(start)
        signature, count, optional = struct.unpack("<4s2xH12xH2x", file.read(24))
        file.seek(optional, os.SEEK_CUR)
        for _ in range(count if signature == b"PE\0\0" else 0):
            its_name, size, _, stored, offset = struct.unpack("<8sIIII16x", file.read(40))
            if its_name == name.ljust(8, b"\0"):
                return offset, min(size, stored)
    except (struct.error, OSError) as e:
        raise Damaged("is damaged: its section table does not parse") from e
    return None


def _vmlinux(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """The ELF file in an image, which lies between two offsets, in pieces."""
    file.seek(start)
    head = file.read(min(0x250, end - start))
    if head.startswith(_ELF):
        yield from _bytes(file, start, end)
        return
    if head[0x202:0x206] != b"HdrS" or len(head) < 0x250:
        raise Unfamiliar("is of a kind that is not known here")
    if (protocol := int.from_bytes(head[0x206:0x208], "little")) < 0x208:
        raise Unfamiliar(f"is of a kind that is not known here: its boot protocol is {protocol >> 8}.{protocol & 255:02}")
    offset, length = struct.unpack_from("<II", head, 0x248)
    start += ((head[0x1F1] or 4) + 1) * 512 + offset
    if not 8 < length <= end - start:
        raise Damaged("is cut off: what it unpacks to lies outside the file")
    file.seek(start)
    first = file.read(8)
    if first.startswith(_ELF):
        yield from _bytes(file, start, start + length)
        return
    if not (kind := compression.kind(first)):
        raise Unfamiliar("is compressed in a way that is not known here")
    # arch/x86/boot/compressed: the size that it unpacks to follows; gzip has it at its end itself.
    behind = 0 if kind == "gzip" else 4
    yield from _unpacked(file, kind, start, start + length - behind)


def _bytes(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (piece := file.read(min(_BLOCK, end - start))):
        start += len(piece)
        yield piece


def _unpacked(file: BinaryIO, kind: str, start: int, end: int) -> Iterator[bytes]:
    pieces, size = _bytes(file, start, end), 0
    stream = compression.Stream(kind, next(pieces, b""), lambda _: next(pieces, b""))
    for piece in stream:
        if (size := size + len(piece)) > compression.LIMIT:
            raise Damaged(f"unpacks to more than {compression.LIMIT} bytes")
        yield piece
    file.seek(end - 4 if kind == "gzip" else end)
    told = int.from_bytes(file.read(4), "little")
    if size != told or stream.rest:
        raise Damaged(f"is damaged: it unpacks to {size} bytes, and says {told}")


def _image(vmlinux: elf.Elf) -> Image:
    if vmlinux.machine != MACHINE:
        raise Unfamiliar(f"is for {vmlinux.machine}, whose tables are not known here")
    sections = {vmlinux.name(one).decode("utf-8", "backslashreplace"): one for one in reversed(vmlinux.sections)}
    text = sections.get(".rodata")
    if text is None:
        raise Unfamiliar("has no section .rodata")
    banners = {match[0]: match[1] for match in _search(vmlinux, text, _BANNER) if _NUMBER.search(match[0])}
    if len(banners) != 1:
        raise Unfamiliar(f"names {len(banners)} kernels" if banners else "does not say which kernel it is")
    [(banner, release)] = banners.items()
    magic = re.compile(rb"\0(" + re.escape(release) + rb" [\w. -]{0,200})(?=\0)")  # it begins with what is found quickly
    magics = {match[1] for match in _search(vmlinux, text, magic)}
    lines, crcs = _exports(vmlinux, sections)
    return Image(
        release=release.decode("ascii", "backslashreplace"),
        banner=banner.decode("utf-8", "backslashreplace"),
        vermagic=magics.pop().decode("ascii") if len(magics) == 1 else "",
        build_id=_build_id(vmlinux),
        symvers=b"".join(lines),
        crcs=crcs,
        btf=".BTF" in sections,
        config=_configuration(vmlinux, text),
    )


def _search(vmlinux: elf.Elf, where: elf.Section, pattern: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """What matches in a section; some of it twice."""
    for start in range(0, where.size, _BLOCK):
        yield from pattern.finditer(vmlinux.part(where, start, min(_BLOCK + _OVERLAP, where.size - start)))


def _exports(vmlinux: elf.Elf, sections: dict[str, elf.Section]) -> tuple[list[bytes], bool]:
    """The lines of Module.symvers, and whether they have checksums."""
    strings, flagged = sections.get("__ksymtab_strings"), sections.get("__kflagstab")
    if strings is None or "__ksymtab" not in sections:
        raise Unfamiliar("has no table of exports")
    texts, lines, has_crcs = vmlinux.data(strings), [], False
    spaces: dict[int, bytes] = {}  # few, and most are none
    for suffix, kind in _KINDS.items():
        if (table := sections.get(f"__ksymtab{suffix}")) is None:
            continue
        entries, checksums = vmlinux.data(table, _TABLE), sections.get(f"__kcrctab{suffix}")
        count, rest = divmod(len(entries), _ENTRY)
        crcs = vmlinux.data(checksums) if checksums is not None else bytes(4 * count)
        flags = vmlinux.data(flagged) if flagged is not None and not suffix else bytes(count)
        if rest or len(crcs) != 4 * count or len(flags) != count:
            raise Damaged("is damaged: its tables of exports do not fit each other")
        has_crcs = has_crcs or checksums is not None
        distances = elf.words("i", entries, little=True)
        numbers = elf.words("I", crcs, little=True)
        at = table.address - strings.address
        for i in range(count):
            name = _text(texts, at + 4 + distances[3 * i + 1])
            space = at + 8 + distances[3 * i + 2]
            if space not in spaces:
                spaces[space] = _text(texts, space) if distances[3 * i + 2] else b""
            if not name:
                raise Damaged("is damaged: an export has no name")
            its_kind = _KINDS["_gpl"] if flags[i] & _GPL_ONLY else kind
            lines.append(b"0x%08x\t%b\tvmlinux\t%b\t%b\n" % (numbers[i], name, its_kind, spaces[space]))
            at += _ENTRY
    if not lines:
        raise Unfamiliar("exports nothing")
    return lines, has_crcs


def _text(texts: bytes, at: int) -> bytes:
    """The string at an offset of __ksymtab_strings."""
    end = texts.find(b"\0", at, at + _LONGEST + 1) if 0 <= at < len(texts) else -1
    text = texts[at:end]
    if end < 0 or b"\t" in text or b"\n" in text:
        raise Damaged("is damaged: the name of an export lies outside the names")
    return text


def _build_id(vmlinux: elf.Elf) -> str:
    for one in vmlinux.sections:
        notes = vmlinux.data(one, _BLOCK) if one.kind == _NOTE else b""
        at = 0
        while at + 12 <= len(notes):
            named, length, kind = struct.unpack_from("<III", notes, at)
            contents = at + 12 + (named + 3) // 4 * 4
            if (named, kind) == (4, 3) and notes[at + 12 : at + 16] == b"GNU\0":  # NT_GNU_BUILD_ID
                return notes[contents : contents + length].hex()
            at = contents + (length + 3) // 4 * 4
    return ""


def _configuration(vmlinux: elf.Elf, where: elf.Section) -> bytes:
    """What kernel/configs.c puts between its two marks, unpacked."""
    marks = [_place(vmlinux, where, mark) for mark in (b"IKCFG_ST", b"IKCFG_ED")]
    if not 0 <= marks[0] < marks[1] <= marks[0] + _BLOCK:
        return b""
    packed = vmlinux.part(where, marks[0] + 8, marks[1] - marks[0] - 8)
    return compression.unpack(packed, 16 * _BLOCK) if packed.startswith(compression.GZIP) else b""


def _place(vmlinux: elf.Elf, where: elf.Section, mark: bytes) -> int:
    for start in range(0, where.size, _BLOCK):
        at = vmlinux.part(where, start, min(_BLOCK + len(mark), where.size - start)).find(mark)
        if at >= 0:
            return start + at
    return -1
