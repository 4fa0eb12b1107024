# SPDX-License-Identifier: GPL-2.0-or-later
"""The program that hands a compressed module to the kernel; tests/vm/test_compressed.py runs it in a machine."""

from __future__ import annotations

import errno
import subprocess
from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearsal import finit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.spawns
def test_it_runs_and_ends_with_an_error_number(tmp_path: Path) -> None:
    """Without a file there is nothing to insert, whoever asks."""
    path = tmp_path / "finit"
    path.write_bytes(finit.program())
    path.chmod(0o755)
    done = subprocess.run([path, tmp_path / "absent", ""], capture_output=True, check=False)
    assert done.returncode in (errno.EBADF, errno.EPERM, errno.ENOSYS)
    assert done.stdout == done.stderr == b""


def test_words_are_those_of_busybox() -> None:
    assert finit.words(errno.ENOEXEC) == "invalid module format"
    assert finit.words(errno.ENOENT) == "unknown symbol in module, or unknown parameter"
    assert finit.words(errno.ENODEV) == "No such device"
