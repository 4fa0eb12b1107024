# SPDX-License-Identifier: GPL-2.0-or-later
"""What a module's file needs in a kernel; that kernels are asked is shown in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.cli import rehearse
from knetstatd.core import config
from knetstatd.core.errors import KnetstatdError
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_and_what_goes_in_before_it(tmp_path: Path) -> None:
    """A module of the kernel's, or one that is built into it; anything else is not there."""
    tree = kerneltree.make(tmp_path)
    (tmp_path / f"boot/vmlinuz-{KERNEL}").write_bytes(b"image")
    (tree / "modules.builtin").write_text("kernel/lib/part-of-it.ko\n")
    machine, file = Machine(tmp_path, config.Config()), tmp_path / "demo.ko"
    file.write_bytes(kerneltree.module(info={"depends": "big,part_of_it"}))
    subject = rehearse.of_file(machine, KERNEL, file)
    assert subject.modules == ((file, (tree / "kernel/lib/my-lib.ko", tree / "kernel/fs/big.ko")),)
    file.write_bytes(kerneltree.module(info={"depends": "gone"}))
    with pytest.raises(KnetstatdError, match="needs 'gone', which"):
        rehearse.of_file(machine, KERNEL, file)
