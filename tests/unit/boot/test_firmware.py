# SPDX-License-Identifier: GPL-2.0-or-later
"""EFI variables, and the loader that the firmware comes to first."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot import bootloader, firmware

if TYPE_CHECKING:
    from pathlib import Path

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
SYSTEMD_BOOT, GRUB = "\\EFI\\systemd\\systemd-bootx64.efi", "\\EFI\\debian\\shimx64.efi"
REFIND = "\\EFI\\refind\\refind_x64.efi"
WINDOWS, NOT_THERE, NO_FILE = "\\EFI\\Microsoft\\Boot\\b.efi", "\\EFI\\gone\\gone.efi", ""


def variable(root: Path, name: str, data: bytes) -> None:
    place = root / "sys/firmware/efi/efivars"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"{name}-{GLOBAL}").write_bytes(b"\6\0\0\0" + data)


def option(path: str, *, active: bool = True) -> bytes:
    """A load option: a partition's node, the file's if there is one, and the end's."""
    nodes = struct.pack("<BBH38x", 4, 1, 42)
    name = f"{path}\0".encode("utf-16-le")
    nodes += struct.pack("<BBH", 4, 4, 4 + len(name)) + name if path else b""
    nodes += b"\x7f\xff\4\0"
    return struct.pack("<IH", int(active), len(nodes)) + "Name\0".encode("utf-16-le") + nodes + b"arguments"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An ESP with four loaders. This system was started by entry 1."""
    for path, data in (("EFI/SYSTEMD/systemd-bootx64.efi", b"x#### LoaderInfo: systemd-boot 257 ####"),
                       ("EFI/debian/shimx64.efi", b"x"), ("EFI/refind/refind_x64.efi", b"x"),
                       ("EFI/Microsoft/Boot/b.efi", b"x")):  # fmt: skip
        (tmp_path / "efi" / path).parent.mkdir(parents=True)
        (tmp_path / "efi" / path).write_bytes(data)
    variable(tmp_path, "BootCurrent", b"\1\0")
    return tmp_path


@pytest.mark.parametrize(("first", "active", "by_systemd_boot", "other"), [
    (SYSTEMD_BOOT, True, False, SYSTEMD_BOOT), (SYSTEMD_BOOT, True, True, ""), (SYSTEMD_BOOT, False, False, ""),
    (GRUB, True, True, GRUB), (GRUB, True, False, ""), (WINDOWS, True, True, WINDOWS), (WINDOWS, True, False, WINDOWS),
    (REFIND, True, True, REFIND), (REFIND, True, False, REFIND),
    (NOT_THERE, True, False, ""), (NOT_THERE, True, True, ""), (NO_FILE, True, False, ""),
])  # fmt: skip
def test_what_comes_first(root: Path, first: str, active: bool, by_systemd_boot: bool, other: str) -> None:
    variable(root, "Boot000A", option(first, active=active))
    for order, answer in ((b"\x0a\0\1\0", other), (b"\1\0\x0a\0", ""), (b"\7\0\x0a\0\1\0", other), (b"\x0a", ""), (b"", "")):
        variable(root, "BootOrder", order)
        assert firmware.other_loader(root, [root / "boot/efi", root / "efi"], by_systemd_boot) == answer
    variable(root, "BootOrder", b"\x0a\0\1\0")
    (root / f"sys/firmware/efi/efivars/BootCurrent-{GLOBAL}").unlink()
    assert firmware.other_loader(root, [root / "efi"], by_systemd_boot) == "", "what started this system is not known"


def test_the_first_of_those_that_are_there(root: Path) -> None:
    esps = [root / "boot/efi", root / "efi"]
    assert firmware.first(root, esps) is None
    variable(root, "Boot000A", option(NOT_THERE))
    variable(root, "Boot000B", option(GRUB))
    variable(root, "BootOrder", b"\x0a\0\x0b\0")
    assert firmware.first(root, esps) == root / "efi/EFI/debian/shimx64.efi"


def test_what_may_have_started_the_machine(tmp_path: Path) -> None:
    assert firmware.may_start(tmp_path)
    (tmp_path / "sys/firmware").mkdir(parents=True)
    assert not firmware.may_start(tmp_path), "BIOS"
    (tmp_path / "sys/firmware/efi").mkdir()
    assert firmware.may_start(tmp_path)
    assert not firmware.is_hidden(tmp_path)


def test_next_is_not_known_then(root: Path) -> None:
    (root / "boot/grub").mkdir(parents=True)
    (root / "boot/grub/grub.cfg").write_text("menuentry x { linux /vmlinuz-6.1.0-1-amd64; }\n")
    assert bootloader.next_kernel(root, ["6.1.0-1-amd64"]).release == "6.1.0-1-amd64"
    variable(root, "Boot000A", option(SYSTEMD_BOOT))
    variable(root, "BootOrder", b"\x0a\0\1\0")
    answer = bootloader.next_kernel(root, ["6.1.0-1-amd64"])
    assert (answer.release, f"the firmware starts {SYSTEMD_BOOT} first" in answer.why) == ("", True)


@given(st.binary(max_size=80), st.binary(max_size=8))
def test_no_bytes_raise(root: Path, data: bytes, order: bytes) -> None:
    variable(root, "BootOrder", b"\x0a\0" + order)
    for option_data in (data, struct.pack("<IH", 1, 60) + b"\0\0" + data):
        variable(root, "Boot000A", option_data)
        assert firmware.other_loader(root, [root / "efi"], by_systemd_boot=False) == ""
