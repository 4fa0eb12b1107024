# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed files: whole ones come back, everything else is Damaged and nothing else."""

from __future__ import annotations

import ctypes
import gzip
import io
import lzma
import os
import sys
import time
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packers import PROGRAMS, packed, xz, zstd

from knetstatd.core.errors import Damaged, LibraryMissing
from knetstatd.formats import compression

if TYPE_CHECKING:
    from collections.abc import Callable


PACKERS = pytest.mark.parametrize("pack", [gzip.compress, xz, zstd])
STEP = 1 << 17


@PACKERS
@pytest.mark.parametrize("size", [0, 1, 100, STEP - 1, STEP, STEP + 1, 3 * STEP])
def test_whole_files(pack: Callable[[bytes], bytes], size: int) -> None:
    data = os.urandom(size // 2) + bytes(size - size // 2)
    packed = pack(data)
    assert compression.is_packed(packed[:6])
    assert compression.unpack(packed) == data
    assert compression.unpack(packed, size) == data


@PACKERS
def test_members_follow_each_other(pack: Callable[[bytes], bytes]) -> None:
    assert compression.unpack(pack(b"one ") + pack(b"two")) == b"one two"


def test_thousands_of_streams_end_quickly() -> None:
    start = time.process_time()
    assert compression.unpack(gzip.compress(b"") * 100_000) == b""
    assert time.process_time() - start < 2


@pytest.mark.parametrize("zeros", [4092, 4096, 4100, 8192, 1 << 16])
def test_padding_of_any_length(zeros: int) -> None:
    whole = xz(b"a")
    assert compression.unpack(whole + bytes(zeros) + xz(b"b") + bytes(zeros)) == b"ab"
    for odd in (1, 2, 3):
        for damaged in (whole + bytes(zeros + odd), whole + bytes(zeros - odd) + whole):
            with pytest.raises(Damaged):
                compression.unpack(damaged)


def test_xz_may_be_padded() -> None:
    assert compression.unpack(xz(b"one ") + bytes(8) + xz(b"two") + bytes(4)) == b"one two"


@PACKERS
def test_bombs_stop_at_the_limit(pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(bytes(4 * STEP))
    for limit in (0, 10, STEP - 1, STEP, 4 * STEP - 1):
        with pytest.raises(Damaged, match=f"unpacks to more than {limit} bytes"):
            compression.unpack(bomb, limit)
    with pytest.raises(Damaged, match="unpacks to more than"):
        compression.unpack(pack(b"12345") * 3, 10)


@PACKERS
def test_every_truncation_is_seen(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(b"some text " * 30)
    for size in range(6, len(packed)):
        with pytest.raises(Damaged, match="ends too early"):
            compression.unpack(packed[:size])


@PACKERS
def test_what_follows_is_seen(pack: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Damaged):
        compression.unpack(pack(b"text") + b"more that is not compressed")


@PACKERS
def test_damage_is_named(pack: Callable[[bytes], bytes]) -> None:
    packed = bytearray(pack(os.urandom(1000)))
    for at in range(6, 30):
        packed[at] ^= 0xFF
    with pytest.raises(Damaged, match=r"has damaged \w+ data"):
        compression.unpack(bytes(packed))


def test_plain_files_pass() -> None:
    assert compression.unpack(b"plain") == b"plain"
    assert not compression.is_packed(b"\x7fELF\x02\x01")
    assert not compression.is_packed(b"")
    with pytest.raises(Damaged):
        compression.unpack(b"plain", 4)


@given(
    st.sampled_from([compression.GZIP, compression.GZIP + b"\x08", compression.XZ, compression.ZSTD, b""]),
    st.binary(max_size=200),
)
@example(compression.XZ, b"")
def test_nothing_but_damaged_is_raised(magic: bytes, rest: bytes) -> None:
    try:
        assert len(compression.unpack(magic + rest, 1000)) <= 1000
    except Damaged as e:
        assert str(e)


@given(st.sampled_from([gzip.compress, xz, zstd]), st.integers(0, 300), st.integers(0, 255))
def test_one_wrong_byte(pack: Callable[[bytes], bytes], at: int, value: int) -> None:
    packed = bytearray(pack(b"some text and its end"))
    packed[at % len(packed)] = value
    try:
        compression.unpack(bytes(packed), 1 << 20)
    except Damaged as e:
        assert str(e)


@pytest.mark.parametrize(("head", "library", "package"), [
    (compression.ZSTD, "zstandard", "python3-zstandard"), (compression.LZO, "lzo", "python3-lzo"),
])  # fmt: skip
def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch, head: bytes, library: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LibraryMissing, match=f"{package} is not installed") as raised:
        list(compression.Stream(compression.kind(head), head))
    assert raised.value.package == package


def test_lz4_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", _missing)
    with pytest.raises(LibraryMissing, match="liblz4-1 is not installed"):
        list(compression.Stream("lz4", compression.LZ4))


def _missing(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


TEXT = b"some text, and more of it " * 5000 + os.urandom(70000)


@pytest.mark.spawns
@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_kind_that_a_kernel_reads(kind: str) -> None:
    data = packed(kind, TEXT)
    assert compression.kind(data) == kind
    for cut in (10, 40, len(data) - 4):
        rest = io.BytesIO(data[cut:])
        stream = compression.Stream(kind, data[:cut], rest.read)
        assert b"".join(stream) == TEXT
        assert stream.rest == b""


@pytest.mark.spawns
@pytest.mark.parametrize("kind", PROGRAMS)
def test_what_follows_a_stream_is_left(kind: str) -> None:
    stream = compression.Stream(kind, packed(kind, TEXT) + bytes(4) + b"070701")
    assert b"".join(stream) == TEXT
    assert stream.rest == bytes(4) + b"070701"


@pytest.mark.spawns
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_stream_that_is_cut_off(kind: str) -> None:
    data = packed(kind, TEXT)
    for size in (2, 9, 20, 34, 40, 50, len(data) // 2, len(data) - 5):
        with pytest.raises(Damaged):
            list(compression.Stream(kind, data[:size]))


def test_lz4_and_lzo_that_are_damaged() -> None:
    lz4 = (b"\xff\xff\xff\x7f", b"\x03\0\0\0xxx")
    header = compression.LZO + b"\x10\x30" + bytes(6) + bytes(16) + b"\0" + bytes(4)
    lzo = (b"\0\0\0\x05\0\0\0\x06" + bytes(20), b"\0\xff\xff\xff\0\0\0\x01" + bytes(20), b"\0\0\0\x09\0\0\0\x03xxx")
    filtered = header[:17] + b"\0\0\x08\0" + header[21:]
    assert list(compression.Stream("lzo", header + bytes(4))) == list(compression.Stream("lzo", filtered + bytes(8))) == []
    # Cut off in the header, in a block's lengths, and in a block with the sum of what it was packed from.
    summed = header[:17] + b"\0\0\2\1" + header[21:]
    for cut in (header[:20], header[:34], header + bytes(3), header + b"\0\0\0\5\0", summed + b"\0\0\0\x09\0\0\0\3" + bytes(6)):
        with pytest.raises(Damaged, match="ends"):
            list(compression.Stream("lzo", cut))
    for data in (*(compression.LZ4 + block for block in lz4), *(header + block for block in lzo), b"\x89L" + bytes(40)):
        with pytest.raises(Damaged, match=r"has damaged \w+ data"):
            list(compression.Stream(compression.kind(data), data))
    with pytest.raises(Damaged, match="not known"):
        list(compression.Stream("", b"?"))


def test_kinds() -> None:
    heads = {b"\x1f\x8b": "gzip", b"BZh9": "bzip2", b"\x5d\0\0": "lzma", compression.ZSTD: "zstd", b"0707": "", b"": ""}
    assert {head: compression.kind(head) for head in heads} == heads


@pytest.mark.parametrize(("data", "why"), [
    (lzma.compress(b"x", check=lzma.CHECK_CRC32), ""), (lzma.compress(b"x", check=lzma.CHECK_NONE), ""),
    (lzma.compress(b"x"), "CRC64"), (lzma.compress(b"x", check=lzma.CHECK_SHA256), "SHA-256"),
    (compression.XZ + b"\0\x07", "number 7"), (gzip.compress(b"x"), ""), (b"\x1f\x8b\x08\x08abcd", ""),
    (b"\x1f\x8b\x08\x04abcd", "fields"), (b"\x1f\x8b\x08\x02abcd", "fields"), (b"\x1f\x8b\x08\x10abcd", "fields"),
    (compression.ZSTD + bytes(8), ""), (b"plain....", ""), (b"", ""),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_what_only_others_take(data: bytes, why: str) -> None:
    assert why in compression.refused(data[:8])
    assert bool(compression.refused(data[:8])) == bool(why)


@pytest.mark.parametrize(("size", "taken"), [(30, True), (31, False)], ids=["128 MiB", "192 MiB"])
def test_the_dictionary_with_which_kernels_pack_themselves(size: int, taken: bool) -> None:
    """scripts/xz_wrap.sh from Linux 6.12 on; size: as the header of a block has it (xz-file-format 5.3.1)."""
    packed = bytearray(lzma.compress(b"kernel", check=lzma.CHECK_CRC32))
    assert packed[12:16] == b"\x02\x00\x21\x01"
    packed[16] = size
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    if taken:
        assert compression.unpack(bytes(packed)) == b"kernel"
        return
    with pytest.raises(Damaged, match="limit"):
        compression.unpack(bytes(packed))
