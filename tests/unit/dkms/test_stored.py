# SPDX-License-Identifier: GPL-2.0-or-later
"""What is stored is unpacked by others' programs, and is what it was."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import runpy
import sys
from typing import TYPE_CHECKING

import pytest
import zstandard

from knetstatd.dkms import stored
from knetstatd.formats import compression

if TYPE_CHECKING:
    from pathlib import Path

SIZES = (1, 2, 3, 4, 5, 127, 128, 65535, 65536, 65537, 200000, 3 << 20)


@pytest.mark.parametrize("size", SIZES)
def test_any_size_is_unpacked(size: int) -> None:
    data = bytes(range(251)) * (size // 251 + 1)
    data = data[:size]

    def form(suffix: str) -> bytes:
        return b"".join(stored.FORMS[suffix](io.BytesIO(data)))

    assert lzma.decompress(form("xz")) == data
    assert gzip.decompress(form("gz")) == data
    assert zstandard.ZstdDecompressor().decompressobj().decompress(form("zst")) == data
    for suffix in stored.FORMS:
        assert len(form(suffix)) < size * 1.001 + 100
    assert not compression.refused(form("xz")[:8]), "the kernel's own decompressor could, too"


def test_a_damaged_byte_is_seen() -> None:
    packed = bytearray(b"".join(stored.xz(io.BytesIO(b"x" * 1000))))
    packed[500] ^= 1
    with pytest.raises(lzma.LZMAError):
        lzma.decompress(packed)


def test_it_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.ko").write_bytes(b"module")
    monkeypatch.setattr(sys, "argv", [stored.__file__, "gz", os.fspath(tmp_path / "demo.ko")])
    runpy.run_path(stored.__file__, run_name="__main__")
    assert gzip.decompress((tmp_path / "demo.ko.gz").read_bytes()) == b"module"


def test_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "demo.ko").write_bytes(b"module")
    stored.replace("xz", os.fspath(tmp_path / "demo.ko"))
    assert os.listdir(tmp_path) == ["demo.ko.xz"]
    assert lzma.decompress((tmp_path / "demo.ko.xz").read_bytes()) == b"module"
