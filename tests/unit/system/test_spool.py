# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents that are read at any place: in memory or in a file, plain or packed, they are the same."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import resource
from typing import TYPE_CHECKING

import pytest
from packers import zstd

from knetstatd.core import roots
from knetstatd.core.errors import Damaged
from knetstatd.formats import elf
from knetstatd.system import spool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DATA = random.Random(5).randbytes(60_000)
PACKERS: list[Callable[[bytes], bytes]] = [bytes, gzip.compress, lzma.compress, zstd]


@pytest.fixture(params=[spool.IN_MEMORY, 20_000, 0])
def limit(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(spool, "IN_MEMORY", request.param)
    return int(request.param)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", os.fspath(tmp_path / "scratch"))
    yield tmp_path
    assert list((tmp_path / "scratch").iterdir()) == []


def assert_read(path: Path) -> None:
    with roots.regular(path) as file:
        file.seek(17)  # whoever had it before may have read
        with elf.unpacked(file.fileno()) as source:
            assert source.size == len(DATA)
            for start in (0, 1, 19_999, 40_000, len(DATA)):
                assert source.at(start, len(DATA) - start) == DATA[start:]
            with pytest.raises(Damaged):
                source.at(len(DATA) - 1, 2)


@pytest.mark.parametrize("pack", PACKERS)
def test_the_contents(pack: Callable[[bytes], bytes], limit: int, place: Path) -> None:
    (place / "file").write_bytes(pack(DATA))
    assert_read(place / "file")


def test_what_is_large_is_not_in_memory(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Nor is it anywhere where others can open it."""
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    (place / "file").write_bytes(gzip.compress(DATA))
    with roots.regular(place / "file") as file, elf.unpacked(file.fileno()) as source:
        there = os.readlink(f"/proc/self/fd/{source.fd}")
        assert there.startswith(f"{place}/scratch/")
        assert there.endswith("(deleted)")
        assert os.fstat(source.fd).st_nlink == 0
        number = source.fd
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


@pytest.mark.parametrize("room", [0, 1, 30_000, 59_999])
def test_without_room_it_is_in_memory(room: int, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """A disk that is full: here, a file may not become larger than so many bytes."""
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    (place / "file").write_bytes(gzip.compress(DATA))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        assert_read(place / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_where_no_file_can_be_made(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 1000)
    monkeypatch.setattr(spool, "_DIRECTORIES", (os.fspath(place / "none"),))
    monkeypatch.setenv("TMPDIR", os.fspath(place / "nowhere"))
    (place / "file").write_bytes(gzip.compress(DATA))
    assert_read(place / "file")


@pytest.mark.parametrize("data", [b"", gzip.compress(DATA)[:-9], lzma.compress(DATA) + b"\0"])
def test_damaged_files(data: bytes, limit: int, place: Path) -> None:
    (place / "file").write_bytes(data)
    with roots.regular(place / "file") as file, pytest.raises(Damaged), elf.unpacked(file.fileno()):
        pass


def test_what_is_no_file(place: Path) -> None:
    with open("/dev/null", "rb") as file, pytest.raises(Damaged, match="not a regular file"), elf.unpacked(file.fileno()):
        pass
