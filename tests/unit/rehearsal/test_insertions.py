# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a module goes into the rehearsal's kernel compressed, as it will at boot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest
from packers import xz

from knetstatd.rehearsal import insertions, rehearse
from knetstatd.state import rehearsal_results

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("names", "packed"), [
    (b"lzma_code /sys/module/compression", [False, True]), (b"lzma_code", [False, False]),
])  # fmt: skip
def test_a_compressed_module_goes_in_as_kmod_gives_it(tmp_path: Path, names: bytes, packed: list[bool]) -> None:
    kerneltree.make(tmp_path, config="CONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_XZ=y\n")
    kerneltree.kmod(tmp_path, names)
    data, stored = kerneltree.module("demo"), xz(kerneltree.module("demo"))
    (tmp_path / "dep.ko").write_bytes(kerneltree.module("dep"))
    (tmp_path / "demo.ko.xz").write_bytes(stored)
    (tmp_path / "image").write_bytes(b"image")
    files = ((tmp_path / "demo.ko.xz", (tmp_path / "dep.ko",)),)
    read_before = rehearse.inputs(rehearsal_results.Subject(kerneltree.KERNEL, "demo", tmp_path / "image", files))
    made = insertions.modules(tmp_path, kerneltree.KERNEL, read_before.modules, read_before.packed)
    assert [one.packed for one in made] == packed
    assert [one.name for one in made] == ["dep", "demo"]
    assert made[1].data == (stored if packed[1] else data)
