# SPDX-License-Identifier: GPL-2.0-or-later
"""What the installed dkms does, by its program; the real ones are held against it in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.dkms.dkms_program import Program, program

if TYPE_CHECKING:
    from pathlib import Path

READS = '"/etc/dkms/$module.conf"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (READS, Program(strips_cr=False, by_kernel=False)),
        (f'{READS} "/etc/dkms/$module--$1.conf" ${{x%$CR}}', Program(strips_cr=True, by_kernel=True)),
        ("another program", Program()),
    ],
)
@pytest.mark.parametrize("place", ["usr/sbin", "usr/bin"])
def test_what_it_does(tmp_path: Path, text: str, expected: Program, place: str) -> None:
    assert program(tmp_path) == Program()
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "dkms").write_text("an older one")
    assert program(tmp_path) == Program()
    (tmp_path / place / "dkms").unlink()
    (tmp_path / place / "dkms").write_text(text)
    assert program(tmp_path) == expected
