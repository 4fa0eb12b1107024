# SPDX-License-Identifier: GPL-2.0-or-later
"""What a boot image says of itself. That real images say it so is shown in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot import boot_image

if TYPE_CHECKING:
    from pathlib import Path

K = "6.1.0-1-amd64"
# 2 sectors, and 16 times 100 bytes; the version stands at 0x200 and 0x180 bytes.
HEADER = bytes(0x1F1) + b"\1" + bytes(2) + (100).to_bytes(4, "little") + bytes(10) + b"HdrS" + bytes(8) + b"\x80\1"
WHOLE = HEADER.ljust(0x380, b"\0") + f"{K} (who@where) #1 SMP".encode().ljust(0x400 + 1600 - 0x380, b"\0")


def test_an_image(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    assert (boot_image.release(path), boot_image.is_whole(path)) == ("", False)
    for data, release, whole in (
        (WHOLE, K, True), (WHOLE + b"signature", K, True), (WHOLE[:-1], K, False), (HEADER, "", False), (b"", "", False),
        (b"another architecture's", "", True),
    ):  # fmt: skip
        path.write_bytes(data)
        assert (boot_image.release(path), boot_image.is_whole(path)) == (release, whole)


@given(st.binary(max_size=700))
def test_no_bytes_raise(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "vmlinuz"
    for begin in (b"", b"MZ", HEADER):
        path.write_bytes(begin + data)
        boot_image.is_whole(path)
        assert "\n" not in boot_image.release(path)
