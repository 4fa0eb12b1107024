# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes kernel images for tests: a vmlinux with tables of exports, and a bzImage around it."""

from __future__ import annotations

import gzip
import struct
from typing import TYPE_CHECKING

import elf
from elf import Sec
from packers import packed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

KERNEL = "6.1.0-1-amd64"
VERSION = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.9-1 (2026-01-01)"
BUILD_ID = "0123456789abcdef"
STEP = 0x100000  # between the addresses of two sections


def banner(kernel: str = KERNEL, version: str = VERSION) -> bytes:
    """The text of /proc/version, as it lies in the kernel."""
    return f"Linux version {kernel} (builder@host) (gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld 2.40) {version}\n\0".encode()


def text(
    *more: bytes, kernel: str = KERNEL, version: str = VERSION, flags: str = "SMP preempt mod_unload modversions "
) -> bytes:
    """The contents of .rodata; of a first link there is a banner without a number."""
    first = banner(kernel, version).replace(b"#1 ", b"# ")
    return b"\0".join([b"\0words", f"{kernel} {flags}".encode(), first, banner(kernel, version), *more]) + b"\0"


def notes(build_id: str = BUILD_ID) -> bytes:
    """.notes: one of another kind, then the build ID."""
    data = bytes.fromhex(build_id)
    other = struct.pack("<III", 6, 3, 7) + b"Linux\0\0\0abc\0"
    return other + struct.pack("<III", 4, len(data), 3) + b"GNU\0" + data


def vmlinux(
    exports: Mapping[str, tuple[int, str, str]],
    *,
    crcs: bool = True,
    flagged: bool = False,
    rodata: bytes | None = None,
    more: Sequence[Sec] = (),
    machine: int = 62,
    kind: int = 2,
    without: Sequence[str] = (),
    replaced: Mapping[str, bytes] | None = None,
) -> bytes:
    """A kernel. exports: checksum, kind and namespace of each.  flagged: one table for both kinds, as from 7.0 on.

    without: sections that are left out.  replaced: contents of sections.
    """
    strings, at = b"\0", {"": 0}
    for name in [*exports, *(namespace for _, _, namespace in exports.values())]:
        if name not in at:
            at[name] = len(strings)
            strings += name.encode() + b"\0"
    suffixes = dict.fromkeys(["EXPORT_SYMBOL", "EXPORT_SYMBOL_GPL"], "")
    if not flagged:
        suffixes |= {"EXPORT_SYMBOL_GPL": "_gpl", "EXPORT_SYMBOL_GPL_FUTURE": "_gpl_future"}
    names = [".rodata", "__ksymtab_strings", *(f"__ksymtab{suffix}" for suffix in dict.fromkeys(suffixes.values()))]
    address = {name: STEP * number for number, name in enumerate(names, 1)}
    tables: dict[str, bytes] = {f"__ksymtab{suffix}": b"" for suffix in suffixes.values()}
    checksums: dict[str, bytes] = {f"__kcrctab{suffix}": b"" for suffix in suffixes.values()}
    flags = b""
    for name, (crc, its_kind, namespace) in exports.items():
        table = f"__ksymtab{suffixes[its_kind]}"
        here = address[table] + len(tables[table])
        place = address["__ksymtab_strings"]
        distance = place + at[namespace] - here - 8 if namespace else 0
        tables[table] += struct.pack("<iii", 0, place + at[name] - here - 4, distance)
        checksums[f"__kcrctab{suffixes[its_kind]}"] += struct.pack("<I", crc)
        flags += bytes([its_kind == "EXPORT_SYMBOL_GPL"])
    contents = {".rodata": text() if rodata is None else rodata, "__ksymtab_strings": strings, **tables}
    contents |= checksums if crcs else {}
    contents |= {"__kflagstab": flags} if flagged else {}
    contents |= replaced or {}
    sections = [Sec(name, data) for name, data in contents.items() if name not in without]
    made = elf.file([*sections, Sec(".notes", notes(), kind=7), *more], machine=machine, kind=kind)
    (start,) = struct.unpack_from("<Q", made, 40)
    for number, section in enumerate(sections, 1):
        where = start + 64 * number + 16
        made = made[:where] + struct.pack("<Q", address.get(section.name, 0)) + made[where + 8 :]
    return made


def bzimage(kernel: bytes, kind: str = "gzip", *, size: int | None = None, protocol: int = 0x20F, tail: bytes = b"") -> bytes:
    """A boot image. kind: how it is compressed, "" for not.  size: what it says that it unpacks to.  tail: behind it."""
    payload = gzip.compress(kernel) if kind == "gzip" else packed(kind, kernel) if kind else kernel
    if kind != "gzip":
        payload += struct.pack("<I", len(kernel) if size is None else size)
    head = bytearray(1024)
    head[0:2], head[0x1F1], head[0x202:0x206] = b"MZ", 1, b"HdrS"
    struct.pack_into("<I", head, 0x3C, 0x40)  # no PE header there
    struct.pack_into("<H", head, 0x206, protocol)
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    struct.pack_into("<I", head, 0x1F4, (16 + len(payload) + len(tail)) // 16)  # of the protected-mode code, in paragraphs
    return bytes(head) + bytes(16) + payload + tail


def unified(image: bytes) -> bytes:
    """A unified kernel image: a PE file with sections .osrel and .linux."""
    start = 0x40 + 24 + 2 * 40
    rows = struct.pack("<8sIIII16x", b".osrel", 4, 0, 4, start) + struct.pack(
        "<8sIIII16x", b".linux", len(image), 0, len(image) + 9, start + 4
    )
    pe = struct.pack("<4sHH12xHH", b"PE\0\0", 0x8664, 2, 0, 0) + rows
    return b"MZ" + bytes(58) + struct.pack("<I", 0x40) + pe + b"NAME" + image + bytes(9)
