# SPDX-License-Identifier: GPL-2.0-or-later
"""What was packed while others held the shared trees, and whether it is still what would be published."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from knetstatd.build import publish
from knetstatd.build import sign as signing
from knetstatd.state.staged import Staged

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path) -> Path:
    path.write_bytes(b"x")
    time.sleep(0.02)  # the next file is newer, by the clock of file systems too
    return path


def test_an_archive_counts_until_the_key_is_replaced(tmp_path: Path) -> None:
    staged = Staged(tmp_path / "tree", (), tmp_path / "log")
    private, certificate = write(tmp_path / "mok.key"), write(tmp_path / "mok.pub")
    key = signing.Key(tmp_path / "sign-file", "sha256", os.fspath(private), os.fspath(certificate))
    assert publish.packed(staged, key) is None, "nothing was packed"
    archive = write(tmp_path / publish.ARCHIVE)
    assert publish.packed(staged, key) == archive
    assert publish.packed(staged, None) == archive, "unsigned"
    for replaced in (certificate, private):
        write(replaced)
        assert publish.packed(staged, key) is None, f"{replaced.name} is newer"
        archive = write(tmp_path / publish.ARCHIVE)
        assert publish.packed(staged, key) == archive
    inside = key._replace(private="pkcs11:token=machine")
    assert publish.packed(staged, inside) == archive
    write(certificate)
    assert publish.packed(staged, inside) is None
