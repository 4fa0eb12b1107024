# SPDX-License-Identifier: GPL-2.0-or-later
"""Will what unpacks this module file at boot take it? That is the kernel itself, or kmod; which of them, both decide.

Rule 1: kmod leaves a file to the kernel if the kernel unpacks its kind (/sys/module/compression), and does not try itself
        when the kernel refuses it (kmod 31 on, libkmod-module.c, do_finit_module()).
Rule 2: the kernel unpacks the first stream of a file, and looks at nothing behind it (kernel/module/decompress.c).
Rule 3: that the file is whole is another check's matter: here it unpacks, for our libraries.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from knetstatd.core import roots
from knetstatd.core.errors import Damaged
from knetstatd.core.model import Check, Result
from knetstatd.formats import compression

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.machine.kmod import Kmod
    from knetstatd.verify.target_kernel import Target

NAME = "compression"
# Of a kernel's configuration (kernel/module/Kconfig, lib/xz/Kconfig).
_DECOMPRESS = "MODULE_DECOMPRESS"
_KINDS = {"MODULE_COMPRESS_GZIP": "gzip", "MODULE_COMPRESS_XZ": "xz", "MODULE_COMPRESS_ZSTD": "zstd"}
# xz's filters for machine code, by their number (xz-file-format 5.3.2).
_FILTERS = {
    4: "XZ_DEC_X86", 5: "XZ_DEC_POWERPC", 6: "XZ_DEC_IA64", 7: "XZ_DEC_ARM", 8: "XZ_DEC_ARMTHUMB", 9: "XZ_DEC_SPARC",
    10: "XZ_DEC_ARM64", 11: "XZ_DEC_RISCV",
}  # fmt: skip
OPTIONS = (_DECOMPRESS, *_KINDS, *_FILTERS.values())
_LZMA2 = 0x21
_SEVERAL = "it has more than one {}, and the kernel unpacks the first alone"


def kernel_unpacks(facts: Target) -> str | None:
    """The kind of compressed module that the kernel unpacks, "" for none; None if its configuration is not known."""
    if not facts.configured:
        return None
    kinds = (kind for option, kind in _KINDS.items() if option in facts.options)
    return next(kinds, "") if _DECOMPRESS in facts.options else ""


def left_to_kernel(head: bytes, facts: Target, tools: Sequence[Kmod]) -> bool:
    """Whether this machine has the kernel unpack a file that begins with `head`."""
    if not compression.is_packed(head) or compression.kind(head) != kernel_unpacks(facts):
        return False
    return any(tool.asks_kernel for tool in tools)


def check(path: Path, facts: Target, tools: Sequence[Kmod]) -> Check:
    """Whether the kernel, or kmod for it, unpacks the file, which is known to be whole. tools: the machine's."""
    try:
        with roots.regular(path) as f:
            if not compression.is_packed(f.read(8)):
                return Check(NAME, Result.PASS, found="not compressed")
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _check(data, facts, tools)
    except OSError as e:
        return Check(NAME, Result.UNKNOWN, "", f"cannot be read: {e.strerror}")


def _check(data: mmap.mmap, facts: Target, tools: Sequence[Kmod]) -> Check:
    kind, by_kernel = compression.kind(data[:8]), kernel_unpacks(facts)
    if not tools:
        reason = "Who unpacks it is not known: this machine has no kmod"
        return Check(NAME, Result.UNKNOWN, "kmod", "none", reason, "Install kmod")
    expected, fix, unsure = _EXPECTED[kind], f"Run: knetstatctl build {facts.kernel}", ""
    for tool in tools:
        ways = []
        if tool.asks_kernel and by_kernel in (None, kind):
            why = _kernels_fault(kind, data, facts)
            ways.append(why and f"The kernel unpacks it by itself, and refuses it: {why}")
        if not tool.asks_kernel or by_kernel != kind:
            why = _kmods_fault(kind, data, tool)
            ways.append(why and f"{tool.path} does not unpack it: {why}")
        if all(ways):
            return Check(NAME, Result.FAIL, expected, kind, ways[0], fix)
        unsure = unsure or next(filter(None, ways), "")
    if unsure:
        reason = f"The kernel's configuration is missing, which says who unpacks it. It may be: {unsure}"
        return Check(NAME, Result.UNKNOWN, expected, kind, reason, fix)
    return Check(NAME, Result.PASS, found=kind)


_EXPECTED = {"xz": "one xz stream with CRC32", "zstd": "one zstd frame that tells its size", "gzip": "one gzip member"}


def _kmods_fault(kind: str, data: mmap.mmap, tool: Kmod) -> str:
    """Why kmod does not unpack a file; "" if it does."""
    if kind not in tool.unpacks:
        return f"it was built without {kind}, or the library for it is missing"
    if kind != "zstd" or not tool.sized:
        return ""
    if not _zstd_size(data):  # libkmod-file-zstd.c, kmod_file_load_zstd()
        return "its header does not tell its size"
    return "" if _zstd_end(data) == len(data) else "it has more than one frame, and room is made for the first alone"


def _kernels_fault(kind: str, data: mmap.mmap, facts: Target) -> str:
    """Why the kernel does not unpack a file to the end, if it unpacks its kind; "" if it does."""
    if why := compression.refused(data[:8]):
        return why
    try:
        match kind:
            case "xz":
                return _xz_fault(data, facts.options)
            case "zstd":
                return "" if _zstd_end(data) == len(data) else _SEVERAL.format("frame")
        stream = compression.Stream(kind, data[:])
        for _ in stream:
            pass
        return _SEVERAL.format("member") if stream.rest else ""
    except (IndexError, Damaged):
        return "its structure cannot be read"


def _xz_fault(data: mmap.mmap, options: frozenset[str]) -> str:
    """lib/xz/xz_dec_stream.c, dec_block_header(): at most one filter for machine code, which is built in, and LZMA2."""
    end = len(data)
    while data[end - 4 : end] == bytes(4):  # padding
        end -= 4
    index = end - 12 - 4 * (int.from_bytes(data[end - 8 : end - 4], "little") + 1)
    count, at = _number(data, index + 1)
    blocks, start = [], 12
    for _ in range(count):
        blocks.append(start)
        size, at = _number(data, at)
        _, at = _number(data, at)
        start += (size + 3) & ~3
    if start != index:
        return _SEVERAL.format("stream")
    return next(filter(None, (_xz_block_fault(data, block, options) for block in blocks)), "")


def _xz_block_fault(data: mmap.mmap, start: int, options: frozenset[str]) -> str:
    """The same for one block, which begins at `start` (xz-file-format 3.1)."""
    flags, at = data[start + 1], start + 2
    for bit in (0x40, 0x80):
        if flags & bit:
            _, at = _number(data, at)
    for left in range(flags & 3, -1, -1):
        number, at = _number(data, at)
        size, at = _number(data, at)
        if left and (flags & 2 or _FILTERS.get(number) not in options or size):
            return f"it uses xz's filter {number:#x}, which this kernel does not have"
        if not left and number != _LZMA2:
            return "it does not end in LZMA2"
    return ""


def _number(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A variable-length integer and the place after it (xz-file-format 1.2)."""
    value = 0
    for shift in range(0, 63, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise IndexError(at)


def _zstd_size(data: mmap.mmap) -> int:
    """What the first frame's header says that it unpacks to; 0 for nothing."""
    import zstandard  # the file was unpacked by it

    size = zstandard.get_frame_parameters(data[:18]).content_size
    return 0 if size >= 1 << 63 else int(size)


def _zstd_end(data: mmap.mmap) -> int:
    """Where the first frame ends (RFC 8878, 3.1.1): its header, blocks with three bytes before each, a checksum."""
    import zstandard

    at = int(zstandard.frame_header_size(data[:18]))
    while True:
        head = int.from_bytes(data[at : at + 3], "little")
        if len(data) < at + 3:
            raise IndexError(at)
        at += 3 + (1 if head >> 1 & 3 == 1 else head >> 3)
        if head & 1:
            return at + 4 * bool(data[4] & 4)
