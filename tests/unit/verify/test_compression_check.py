# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed modules: what the kernel takes, what kmod takes, and which of them is asked. tests/vm/test_compressed.py asks
real ones."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import kerneltree
import pytest
import zstandard
from kerneltree import KERNEL
from packers import xz, zstd

from knetstatd.core.model import Check, Result
from knetstatd.machine import kmod
from knetstatd.verify import compression_check, target_kernel

if TYPE_CHECKING:
    from pathlib import Path

PASS, FAIL, UNKNOWN = Result.PASS, Result.FAIL, Result.UNKNOWN
DATA = os.urandom(3000) + bytes(5000)
OLD, NEW = b"lzma_code ZSTD_isError", b"lzma_code ZSTD_isError /sys/module/compression ZSTD_getFrameContentSize"
XZ = "CONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_XZ=y\nCONFIG_XZ_DEC_X86=y\n"
ZSTD = "CONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_ZSTD=y\n"
GZIP = "CONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_GZIP=y\n"
SEVERAL = "it has more than one {}, and the kernel unpacks the first alone"
NONE = "CONFIG_MODULE_COMPRESS_XZ=y\n"  # compressed, and not unpacked by the kernel


def filtered(*filters: dict[str, int]) -> bytes:
    chain = [*filters, {"id": lzma.FILTER_LZMA2}]
    return lzma.compress(DATA, check=lzma.CHECK_CRC32, filters=chain)


def unsized(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def stopped(data: bytes) -> bytes:
    """Its last block is empty, so that it ends with that block's header."""
    packer = zstandard.ZstdCompressor().compressobj(size=len(data))
    return packer.compress(data) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + packer.flush()


def gz(flags: int, fields: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(DATA) + packer.flush()
    return b"\x1f\x8b\x08" + bytes([flags]) + bytes(6) + fields + body + struct.pack("<II", zlib.crc32(DATA), len(DATA))


def check(root: Path, data: bytes, config: str | None, names: bytes = NEW) -> Check:
    kerneltree.make(root, config=config or "")
    if names:
        kerneltree.kmod(root, names)
    if config is None:
        (root / f"boot/config-{KERNEL}").unlink()
    (root / "form.ko").write_bytes(data)
    return compression_check.check(root / "form.ko", target_kernel.facts(root, KERNEL), kmod.installed(root))


TWO = xz(DATA[:9]) + xz(DATA[9:])
BLOCKS = xz(DATA * 9)


@pytest.mark.parametrize(("data", "why"), [
    (xz(DATA), ""), (lzma.compress(DATA, check=lzma.CHECK_NONE), ""), (xz(DATA) + bytes(8), ""), (BLOCKS, ""),
    (filtered({"id": lzma.FILTER_X86}), ""),
    (lzma.compress(DATA), "CRC64"), (lzma.compress(DATA, check=lzma.CHECK_SHA256), "SHA-256"),
    (TWO, "more than one stream"), (xz(DATA) + bytes(4) + xz(DATA), "more than one stream"),
    (filtered({"id": lzma.FILTER_ARM}), "filter 0x7"), (filtered({"id": lzma.FILTER_DELTA, "dist": 4}), "filter 0x3"),
    (filtered({"id": lzma.FILTER_X86, "start_offset": 4096}), "filter 0x4"),
    (filtered({"id": lzma.FILTER_X86}, {"id": lzma.FILTER_DELTA, "dist": 1}), "filter"),
    (xz(b"") + xz(DATA), "more than one stream"), (xz(DATA)[:40], "structure"),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_xz_by_the_kernel(tmp_path: Path, data: bytes, why: str) -> None:
    found = check(tmp_path, data, XZ)
    assert (found.result, why in found.reason) == (FAIL if why else PASS, True)
    if why:
        assert found.reason.startswith("The kernel unpacks it by itself, and refuses it: ")
        assert found.fix == f"Run: knetstatctl build {KERNEL}"


@pytest.mark.spawns
def test_xz_whose_blocks_tell_their_sizes(tmp_path: Path) -> None:
    """As xz makes them with threads."""
    done = subprocess.run(["xz", "-T2", "--check=crc32", "-c"], input=DATA, stdout=subprocess.PIPE, check=True)
    assert done.stdout[13] & 0xC0 == 0xC0
    assert check(tmp_path, done.stdout, XZ).result is PASS


@pytest.mark.parametrize(("filters", "why"), [(b"\3\1\0", "does not end in LZMA2"), (b"\xff" * 9, "structure")])
def test_xz_with_other_filters_in_a_block(tmp_path: Path, filters: bytes, why: str) -> None:
    data = xz(DATA)
    assert why in check(tmp_path, data[:14] + filters + data[14 + len(filters) :], XZ).reason


@pytest.mark.parametrize(("config", "names"), [(NONE, NEW), (XZ, OLD), (ZSTD, NEW), (None, OLD)])
@pytest.mark.parametrize("data", [lzma.compress(DATA), TWO, filtered({"id": lzma.FILTER_ARM})])
def test_xz_by_kmod(tmp_path: Path, data: bytes, config: str | None, names: bytes) -> None:
    assert check(tmp_path, data, config, names).result is PASS


@pytest.mark.parametrize(("data", "config", "names", "why"), [
    (zstd(DATA), XZ, NEW, ""), (zstd(DATA), XZ, OLD, ""), (unsized(DATA), XZ, OLD, ""),
    (unsized(DATA), XZ, NEW, "does not tell its size"), (zstd(b""), XZ, NEW, "does not tell its size"),
    (zstd(DATA) + zstd(DATA), XZ, NEW, "more than one frame"), (zstd(DATA) + zstd(DATA), XZ, OLD, ""),
    (zstd(DATA), ZSTD, NEW, ""), (unsized(DATA), ZSTD, NEW, ""), (zstd(bytes(1 << 20)), ZSTD, NEW, ""),
    (stopped(DATA), ZSTD, NEW, ""),
    (zstandard.ZstdCompressor(write_checksum=True).compress(DATA), ZSTD, NEW, ""),
    (zstd(DATA) + zstd(DATA), ZSTD, NEW, SEVERAL.format("frame")), (zstd(DATA)[:8], ZSTD, NEW, "structure"),
    (zstd(DATA), XZ, b"lzma_code", "built without zstd"), (xz(DATA), NONE, b"ZSTD_isError", "built without xz"),
], ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "")  # fmt: skip
def test_zstd(tmp_path: Path, data: bytes, config: str, names: bytes, why: str) -> None:
    found = check(tmp_path, data, config, names)
    assert (found.result, why in found.reason) == (FAIL if why else PASS, True)


@pytest.mark.parametrize(("data", "config", "names", "why"), [
    (gzip.compress(DATA), XZ, NEW, "built without gzip"), (gzip.compress(DATA), XZ, b"gzread", ""),
    (gzip.compress(DATA), GZIP, NEW, ""), (gz(8, b"name\0"), GZIP, NEW, ""), (gz(16, b"comment\0"), GZIP, NEW, "fields"),
    (gzip.compress(DATA) * 2, GZIP, NEW, SEVERAL.format("member")), (gzip.compress(DATA) * 2, XZ, b"gzread", ""),
    (gzip.compress(DATA)[:-100], GZIP, NEW, "structure"),
], ids=lambda value: value if isinstance(value, str) and len(value) < 30 else "")  # fmt: skip
def test_gzip(tmp_path: Path, data: bytes, config: str, names: bytes, why: str) -> None:
    found = check(tmp_path, data, config, names)
    assert (found.result, why in found.reason) == (FAIL if why else PASS, True)


def test_what_is_not_known(tmp_path: Path) -> None:
    """Without its configuration a kernel may unpack modules or not: what both ways take passes, what none takes fails."""
    cases = ((xz(DATA), PASS), (lzma.compress(DATA), UNKNOWN), (zstd(DATA), PASS), (gzip.compress(DATA), UNKNOWN), (DATA, PASS))
    for number, (data, result) in enumerate(cases):
        assert check(tmp_path / str(number), data, None).result is result
    assert check(tmp_path / "none", xz(DATA), XZ, b"").result is UNKNOWN
    assert check(tmp_path / "plain", DATA, XZ, b"").result is PASS
    assert check(tmp_path / "neither", gz(16, b"c\0"), None).result is FAIL
    gone = compression_check.check(tmp_path / "gone", target_kernel.facts(tmp_path, KERNEL), ())
    assert gone.result is UNKNOWN


def test_the_stricter_of_two_programs_counts(tmp_path: Path) -> None:
    """modprobe of one version, libkmod (udev's) of another: both must take it."""
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    (tmp_path / "boot").mkdir()
    (tmp_path / "usr/lib/libkmod.so.2").write_bytes(NEW)
    found = check(tmp_path, lzma.compress(DATA), XZ, OLD)
    assert (found.result, "CRC64" in found.reason) == (FAIL, True)


def test_who_unpacks_it(tmp_path: Path) -> None:
    kerneltree.make(tmp_path, config=XZ)
    kerneltree.kmod(tmp_path, NEW)
    facts, tools = target_kernel.facts(tmp_path, KERNEL), kmod.installed(tmp_path)
    heads = [io.BytesIO(data).read(8) for data in (xz(DATA), zstd(DATA), DATA, xz(DATA)[:2] + DATA)]
    assert [compression_check.left_to_kernel(head, facts, tools) for head in heads] == [True, False, False, False]
    kerneltree.kmod(tmp_path, OLD)
    assert not compression_check.left_to_kernel(heads[0], facts, kmod.installed(tmp_path))
