# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine's kmod does with compressed modules, by the names in its files."""

from __future__ import annotations

from pathlib import Path

import kerneltree
import pytest

from knetstatd.machine import kmod

OLD = b"\0lzma_code\0ZSTD_isError\0"
NEW = OLD + b"/sys/module/compression\0ZSTD_getFrameContentSize\0"


@pytest.mark.parametrize(("names", "unpacks", "asks_kernel", "sized"), [
    (OLD, {"xz", "zstd"}, False, False), (NEW, {"xz", "zstd"}, True, True), (b"gzread", {"gzip"}, False, False),
    (b"", set(), False, False),
])  # fmt: skip
def test_features(tmp_path: Path, names: bytes, unpacks: set[str], asks_kernel: bool, sized: bool) -> None:
    kerneltree.kmod(tmp_path, names)
    [one] = kmod.installed(tmp_path)
    assert one == kmod.Kmod(str(tmp_path / "usr/bin/kmod"), frozenset(unpacks), asks_kernel, sized)


def test_a_library_that_it_opens_is_missing(tmp_path: Path) -> None:
    kerneltree.kmod(tmp_path, NEW)
    (tmp_path / "usr/lib/libzstd.so.1").unlink()
    assert kmod.installed(tmp_path)[0].unpacks == {"xz"}


def test_the_library_of_udev_counts_too(tmp_path: Path) -> None:
    kerneltree.kmod(tmp_path, OLD)
    path = tmp_path / "usr/lib/x86_64-linux-gnu/libkmod.so.2"
    path.parent.mkdir()
    path.write_bytes(NEW)
    assert [one.asks_kernel for one in kmod.installed(tmp_path)] == [False, True]
    path.write_bytes(OLD + b"upgraded")
    assert [one.asks_kernel for one in kmod.installed(tmp_path)] == [False, False]


def test_none_and_one_that_cannot_be_read(tmp_path: Path) -> None:
    assert kmod.installed(tmp_path) == ()
    kerneltree.kmod(tmp_path)
    with (tmp_path / "usr/bin/kmod").open("r+b") as file:
        file.truncate(1 << 30)
    assert kmod.installed(tmp_path) == ()


def test_this_machine() -> None:
    """The names are those of a real one; Debian's has never read gzip."""
    for one in kmod.installed(Path("/")):
        assert one.unpacks == {"xz", "zstd"}
