# SPDX-License-Identifier: GPL-2.0-or-later
"""Two files have the same contents, or they have not; a signature, a packing and a build ID change nothing of that."""

from __future__ import annotations

import gzip
import lzma
import os
import time
from typing import TYPE_CHECKING

import elf
import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.verify import module_contents, module_readings

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = elf.module(build_id="aa")
SIGNED = [elf.sign(WHOLE, signature) for signature in (b"one", b"another")]
FORMS = [WHOLE, *SIGNED, gzip.compress(WHOLE), lzma.compress(SIGNED[0])]


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return tmp_path / "one.ko"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return tmp_path / "other.ko"


@pytest.mark.parametrize("here", FORMS)
@pytest.mark.parametrize("there", FORMS)
def test_the_same(one: Path, other: Path, here: bytes, there: bytes) -> None:
    one.write_bytes(here)
    other.write_bytes(there)
    assert module_contents.are_same(one, other)
    assert module_contents.has(other, module_contents.digest(one))


@pytest.mark.parametrize("here", FORMS)
def test_not_the_same(one: Path, other: Path, here: bytes) -> None:
    one.write_bytes(here)
    for there in (elf.module(build_id="aa", info={"version": "2"}), WHOLE[:-1] + b"\1", here[:-1], b"", b"x" * 99):
        other.write_bytes(there)
        assert not module_contents.are_same(one, other)
        assert not module_contents.are_same(other, one)
        assert not module_contents.has(other, module_contents.digest(one))


def test_a_file_that_was_changed_is_compared_again(one: Path, other: Path) -> None:
    for path in (one, other):
        path.write_bytes(WHOLE)
    assert module_contents.are_same(one, other)
    other.write_bytes(WHOLE.replace(b"GPL", b"BSD"))
    assert not module_contents.are_same(one, other)


def test_times_that_were_set_back_hide_no_change(one: Path, other: Path) -> None:
    for path in (one, other):
        path.write_bytes(WHOLE)
    assert module_contents.are_same(one, other)
    was = other.stat()
    time.sleep(module_readings._TICK)
    other.write_bytes(WHOLE.replace(b"GPL", b"BSD"))
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert not module_contents.are_same(one, other)


def test_what_cannot_be_read(one: Path, other: Path) -> None:
    one.write_bytes(WHOLE)
    assert not module_contents.are_same(one, other)
    assert not module_contents.has(other, module_contents.digest(one))
    other.write_bytes(gzip.compress(WHOLE)[:-9])
    with pytest.raises(KnetstatdError):
        module_contents.digest(other)
    other.unlink()
    other.mkdir()
    assert not module_contents.are_same(one, other)
    assert not module_contents.has(other, module_contents.digest(one))


def test_a_link_is_the_same_file(one: Path, other: Path) -> None:
    one.write_bytes(b"whatever")
    other.symlink_to(one)
    assert module_contents.are_same(one, other)
