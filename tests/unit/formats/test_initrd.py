# SPDX-License-Identifier: GPL-2.0-or-later
"""Added modules in an initrd: found in every form that the kernel unpacks, and read once."""

from __future__ import annotations

import ctypes
import gzip
import io
import lzma
import stat
import subprocess
from typing import TYPE_CHECKING

import elf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knetstatd.core.errors import Damaged
from knetstatd.formats import compression, initrd
from knetstatd.machine import paths
from knetstatd.rehearsal.vm import CpioFile, cpio

if TYPE_CHECKING:
    from pathlib import Path

K = "6.1.0-1-amd64"
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
EARLY = cpio([CpioFile("kernel", DIRECTORY), CpioFile("kernel/x86/microcode/a.bin", FILE, b"\1" * 70000)]) + bytes(512)
MAIN = cpio([
    CpioFile("usr", DIRECTORY),
    CpioFile(f"usr/lib/modules/{K}/kernel/net/own.ko", FILE, elf.module("own", build_id="aa")),
    CpioFile(f"usr/lib/modules/{K}/updates/dkms/my-mod.ko.gz", FILE, gzip.compress(elf.module("my-mod", build_id="0102"))),
    CpioFile("usr/lib/big", FILE, bytes(300001)),
    CpioFile(f"./lib/modules/{K}/extra/plain.ko", FILE, elf.module("plain")),
    CpioFile(f"lib/modules/{K}/updates/broken.ko.xz", FILE, b"nonsense"),
    CpioFile(f"lib/modules/{K}/updates/link.ko", stat.S_IFLNK | 0o777, b""),
])  # fmt: skip
INSIDE = {"my_mod": "0102", "plain": initrd.mark(elf.module("plain")), "broken": ""}


def packed(program: str, *arguments: str, data: bytes = MAIN) -> bytes:
    return subprocess.run([program, *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


def legacy_lz4(data: bytes) -> bytes:
    """In the form that the kernel takes, of literals alone (lz4_Block_format.md); `lz4 -l` makes it smaller."""
    out = compression.LZ4
    for at in range(0, len(data), 8 << 20):
        block = data[at : at + (8 << 20)]
        rest = len(block) - 15
        coded = b"\xf0" + b"\xff" * (rest // 255) + bytes([rest % 255]) + block
        out += len(coded).to_bytes(4, "little") + coded
    return out


def read(tmp_path: Path, data: bytes) -> dict[str, str]:
    (tmp_path / "initrd").write_bytes(data)
    return dict(initrd.contents(tmp_path / "initrd").builds)


@pytest.mark.spawns
@pytest.mark.parametrize("early", [b"", EARLY, bytes(1024) + EARLY + EARLY])
def test_every_form(tmp_path: Path, early: bytes) -> None:
    forms = [
        MAIN, gzip.compress(MAIN), lzma.compress(MAIN, check=lzma.CHECK_CRC32), legacy_lz4(MAIN), packed("zstd", "-q19c"),
        packed("zstd", "-qc", data=MAIN[:1000]) + packed("zstd", "-qc", data=MAIN[1000:]),
    ]  # fmt: skip
    for form in forms:
        assert read(tmp_path, early + form) == INSIDE


@pytest.mark.spawns
def test_a_stream_to_its_end() -> None:
    for form in (gzip.compress(MAIN), lzma.compress(MAIN), legacy_lz4(MAIN) + compression.LZ4, packed("zstd", "-qc")):
        rest = io.BytesIO(form[6:])
        assert b"".join(compression.stream(form[:6], rest.read)) == MAIN


def test_nothing_in_it(tmp_path: Path) -> None:
    assert read(tmp_path, EARLY) == {}
    assert read(tmp_path, b"") == {}


@pytest.mark.spawns
def test_what_cannot_be_read(tmp_path: Path) -> None:
    forms = (MAIN, gzip.compress(MAIN), lzma.compress(MAIN), legacy_lz4(MAIN), packed("zstd", "-qc"))
    for form in forms:
        with pytest.raises(Damaged):
            read(tmp_path, EARLY + form[: len(form) // 2])
    packed_badly = (compression.ZSTD + b"x" * 9, compression.XZ + b"x" * 9, compression.LZ4 + b"\3\0\0\0xxx", b"BZh91AY")
    for form in (*packed_badly, gzip.compress(b"no archive" * 99), MAIN[:-99] + b"x" * 200):
        with pytest.raises(Damaged):
            read(tmp_path, form)
    with pytest.raises(Damaged, match="cannot be read"):
        initrd.contents(tmp_path)
    huge = bytearray(MAIN)
    at = huge.find(b"usr/lib/modules") - 110
    huge[at + 54 : at + 62], name = b"FFFFFFFF", huge.find(b"kernel/net/own.ko")
    huge[name : name + 6] = b"extra/"
    with pytest.raises(Damaged, match="larger than"):
        read(tmp_path, bytes(huge))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 2000), st.booleans())
def test_hostile_bytes_are_damaged(tmp_path: Path, data: bytes, at: int, pack: bool) -> None:
    bad = MAIN[:at] + data + MAIN[at + len(data) :]
    try:
        read(tmp_path, gzip.compress(bad) if pack else bad)
    except Damaged:
        return


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(Damaged, match="liblz4"):
        read(tmp_path, legacy_lz4(MAIN))


def test_where_it_is_and_how_it_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    assert paths.initrd(tmp_path, K) is None
    (tmp_path / f"boot/initramfs-{K}.img").touch()
    assert paths.initrd(tmp_path, K) == tmp_path / f"boot/initramfs-{K}.img"
    assert initrd.fix(tmp_path, K, tmp_path / f"boot/initramfs-{K}.img") == f"Run: dracut --force /boot/initramfs-{K}.img {K}"
    (tmp_path / f"boot/initrd.img-{K}").touch()
    assert paths.initrd(tmp_path, K) == tmp_path / f"boot/initrd.img-{K}"
    (tmp_path / "usr/sbin").mkdir(parents=True)
    (tmp_path / "usr/sbin/update-initramfs").touch()
    assert initrd.fix(tmp_path, K, tmp_path / "any") == f"Run: update-initramfs -u -k {K}"
