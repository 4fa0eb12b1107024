# SPDX-License-Identifier: GPL-2.0-or-later
"""Compressed files: whole ones come back, everything else is Damaged and nothing else."""

from __future__ import annotations

import ctypes
import gzip
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packers import xz, zstd

from knetstatd.core.errors import Damaged
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
    with pytest.raises(Damaged, match="data is damaged"):
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


class _Library:
    """A libzstd without memory."""

    def ZSTD_createDStream(self) -> int | None:
        return None


def test_zstd_without_memory_or_library(monkeypatch: pytest.MonkeyPatch) -> None:
    compression._libzstd.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _missing(name))
    with pytest.raises(Damaged, match=r"libzstd\.so\.1 is not installed"):
        compression.unpack(compression.ZSTD)
    monkeypatch.setattr(compression, "_libzstd", _Library)
    with pytest.raises(Damaged, match="no memory"):
        compression.unpack(compression.ZSTD)


def _missing(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")
