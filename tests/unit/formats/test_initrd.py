# SPDX-License-Identifier: GPL-2.0-or-later
"""Added modules in an initrd: found in every form that the kernel unpacks, and read once."""

from __future__ import annotations

import ctypes
import gzip
import lzma
import stat
import struct
from typing import TYPE_CHECKING

import elf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packers import packed

from knetstatd.core.errors import Damaged, LibraryMissing
from knetstatd.formats import compression, initrd
from knetstatd.rehearsal.vm import CpioFile, cpio

if TYPE_CHECKING:
    from pathlib import Path

K = "6.1.0-1-amd64"
FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
EARLY = cpio([CpioFile("kernel", DIRECTORY), CpioFile("kernel/x86/microcode/a.bin", FILE, b"\1" * 70000)]) + bytes(512)
OLD_XZ = lzma.compress(elf.module("packed", build_id="77"))
MAIN = cpio([
    CpioFile("usr", DIRECTORY),
    CpioFile("init", FILE, b"#!/bin/sh\n"),
    CpioFile(f"usr/lib/modules/{K}/kernel/net/own.ko", FILE, elf.module("own", build_id="aa")),
    CpioFile(f"usr/lib/modules/{K}/updates/dkms/my-mod.ko.gz", FILE, gzip.compress(elf.module("my-mod", build_id="0102"))),
    CpioFile("usr/lib/big", FILE, bytes(300001)),
    CpioFile(f"./lib/modules/{K}/extra/plain.ko", FILE, elf.module("plain")),
    CpioFile(f"lib/modules/{K}/updates/broken.ko.xz", FILE, b"nonsense"),
    CpioFile(f"lib/modules/{K}/updates/packed.ko.xz", FILE, OLD_XZ),
    CpioFile(f"lib/modules/{K}/updates/link.ko", LINK, b"/srv/link.ko"),
    CpioFile("lib/modules/5.10.0-9-amd64/updates/other.ko", FILE, elf.module("other")),
])  # fmt: skip
INSIDE = {
    "my_mod": initrd.mark(elf.module("my-mod", build_id="0102")), "plain": initrd.mark(elf.module("plain")), "broken": "",
    "packed": initrd.mark(elf.module("packed", build_id="77")), "link": "",
}  # fmt: skip
LATER = elf.module("plain", build_id="09")
ALL = tuple(initrd.OPTIONS)


def inside(tmp_path: Path, *parts: bytes, kinds: tuple[str, ...] = ALL) -> initrd.Inside:
    places = [tmp_path / f"initrd{i}" for i in range(len(parts))]
    for place, data in zip(places, parts, strict=True):
        place.write_bytes(data)
    return initrd.contents(places, K, kinds)


@pytest.mark.spawns
@pytest.mark.parametrize("early", [b"", EARLY, bytes(1024) + EARLY + EARLY])
@pytest.mark.parametrize("kind", ["", *ALL])
def test_every_form(tmp_path: Path, early: bytes, kind: str) -> None:
    found = inside(tmp_path, early + (packed(kind, MAIN) if kind else MAIN))
    assert dict(found.copies) == INSIDE
    assert found.init
    assert found.has_own("own")
    assert not found.has_own("my_mod")
    assert list(found.refused) == ["packed"]


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ALL)
def test_archives_after_a_compressed_one(tmp_path: Path, kind: str) -> None:
    later = cpio([CpioFile(f"lib/modules/{K}/updates/plain.ko", FILE, LATER)])
    assert dict(inside(tmp_path, packed(kind, MAIN) + bytes(12) + later).copies) == INSIDE | {"plain": initrd.mark(LATER)}
    assert dict(inside(tmp_path, packed(kind, MAIN) + packed(kind, later)).copies) == INSIDE | {"plain": initrd.mark(LATER)}


def test_several_files_are_one_after_the_other(tmp_path: Path) -> None:
    new = elf.module("packed", build_id="78")
    fresh = lzma.compress(new, check=lzma.CHECK_CRC32)
    later = cpio([CpioFile(f"lib/modules/{K}/updates/packed.ko.xz", FILE, fresh)])
    found = inside(tmp_path, EARLY, gzip.compress(MAIN), later)
    assert (dict(found.copies), found.refused, found.init) == (INSIDE | {"packed": initrd.mark(new)}, {}, True)


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ALL)
def test_what_this_kernel_does_not_unpack(tmp_path: Path, kind: str) -> None:
    others = tuple(each for each in ALL if each != kind)
    with pytest.raises(Damaged, match=f"compressed with {kind}, which this kernel does not unpack"):
        inside(tmp_path, EARLY + packed(kind, MAIN), kinds=others)
    assert inside(tmp_path, EARLY + packed(kind, MAIN), kinds=(kind,)).init


@pytest.mark.parametrize("form", [
    lzma.compress(MAIN), lzma.compress(MAIN, check=lzma.CHECK_SHA256), b"\x04\x22\x4d\x18" + bytes(20), b"070707" + bytes(200),
    gzip.compress(gzip.compress(MAIN)), gzip.compress(MAIN[:1000]) + gzip.compress(MAIN[1000:]), gzip.compress(b"no cpio" * 99),
    MAIN[:-99] + b"x" * 200, MAIN + b"junk", gzip.compress(MAIN) + b"junk", b"", b"MZ" + bytes(9), b"\0" * 70000 + b"x",
], ids=lambda form: form[:4].hex())  # fmt: skip
def test_what_no_kernel_unpacks(tmp_path: Path, form: bytes) -> None:
    with pytest.raises(Damaged):
        inside(tmp_path, form)


@pytest.mark.spawns
@pytest.mark.parametrize("kind", ["", *ALL])
def test_one_that_is_cut_off(tmp_path: Path, kind: str) -> None:
    form = packed(kind, MAIN) if kind else MAIN
    for size in (7, len(form) // 2, len(form) - 140 if not kind else len(form) - 9):
        with pytest.raises(Damaged):
            inside(tmp_path, EARLY + form[:size])
    assert not inside(tmp_path, EARLY).init, "cut off between two archives"


def test_a_unified_kernel_image(tmp_path: Path) -> None:
    body = gzip.compress(MAIN)

    def image(*sections: tuple[bytes, int, int]) -> bytes:
        rows = b"".join(struct.pack("<8sIIII16x", name, size, 0, size, at) for name, size, at in sections)
        head = b"MZ" + bytes(58) + struct.pack("<I", 64) + struct.pack("<4s2xH12xH2x", b"PE\0\0", len(sections), 8) + bytes(8)
        return (head + rows).ljust(512, b"\0") + body + b"after it"

    assert dict(inside(tmp_path, image((b".linux\0\0", 9, 0), (b".initrd\0", len(body), 512))).copies) == INSIDE
    for form in (image((b".linux\0\0", 9, 0)), image()[:80], b"MZ" + bytes(58) + struct.pack("<I", 9999)):
        with pytest.raises(Damaged):
            inside(tmp_path, form)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        initrd.contents([tmp_path], K)
    with pytest.raises(FileNotFoundError):
        initrd.contents([tmp_path / "absent"], K)
    huge = bytearray(MAIN)
    at = huge.find(b"usr/lib/modules") - 110
    huge[at + 54 : at + 62], name = b"FFFFFFFF", huge.find(b"kernel/net/own.ko")
    huge[name : name + 6] = b"extra/"
    with pytest.raises(Damaged, match="larger than"):
        inside(tmp_path, bytes(huge))


@given(st.binary(max_size=200), st.integers(0, 2000), st.booleans())
def test_hostile_bytes_are_damaged(tmp_path: Path, data: bytes, at: int, pack: bool) -> None:
    bad = MAIN[:at] + data + MAIN[at + len(data) :]
    try:
        inside(tmp_path, gzip.compress(bad) if pack else bad)
    except Damaged:
        return


def test_one_without_an_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros between archives, and what unpacks to them, go on for ever: that is no initrd, and nobody knows what it is."""
    monkeypatch.setattr(initrd, "_MOST", 1 << 20)
    zeros = bytes((1 << 20) + 1)
    for part in (zeros, gzip.compress(zeros)):
        with pytest.raises(OSError, match="File too large"):
            inside(tmp_path, part)
    assert not inside(tmp_path, zeros[:-1]).init


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(LibraryMissing, match="liblz4"):
        inside(tmp_path, EARLY + compression.LZ4 + bytes(9))
