# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-boot's entries from a partition's files, and which of them it starts."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from knetstatd.boot import systemd_boot
from knetstatd.boot.grub_state import Undecided
from knetstatd.boot.systemd_boot import Variables, choose, entries, pe_sections, unified

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

VERSION = 257


def pe(sections: dict[str, bytes]) -> bytes:
    """A PE file that has these sections and nothing else."""
    headers, bodies, at = b"", b"", 0x400
    for name, data in sections.items():
        headers += struct.pack("<8sIIII16x", name.encode(), len(data), 0x1000, len(data), at)
        bodies += data
        at += len(data)
    start = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40) + b"PE\0\0"
    start += struct.pack("<HH12xHH", 0x8664, len(sections), 0xF0, 0)
    return (start + bytes(0xF0) + headers).ljust(0x400, b"\0") + bodies


def chosen(root: Path, version: int = VERSION, **variables: str) -> tuple[str, str] | None:
    found = choose([root], Variables(**variables), version)
    return (found[0].name, found[1]) if found else None


def test_the_keys_of_an_entry(tree: Tree) -> None:
    root = tree({
        "a/linux": "", "x.efi": "",
        "loader/entries/a.conf":
            "title T\ntitle U\nlinux \\a\\linux\noptions a b\noptions c\ninitrd /i\ninitrd /j\nversion 1\n",
        "loader/entries/b.CONF": "efi /x.efi\nsort-key k\nmachine-id m\narchitecture x64\n",
    })  # fmt: skip
    a, b = entries(root)
    # boot_entry_add_type1: the last of a key counts; options and initrds add up.
    assert (a.title, a.image, a.options, a.initrds, a.version, a.sort_key) == (
        "U",
        "\\a\\linux",
        "a b c",
        ("/i", "/j"),
        "1",
        None,
    )
    assert (b.name, b.image, b.sort_key, b.machine) == ("b.CONF", "/x.efi", "k", "m")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conf", "linux /gone\n"), ("a.conf", "title x\n"), ("a.conf", ""), ("a.txt", "linux /linux\n"), (".a.conf",
        "linux /linux\n"),
        ("auto-a.conf", "linux /linux\n"), ("a.conf/", ""), ("a.conf", "linux /linux\narchitecture aa64\n"), ("a.conf",
        "uki /linux\n"),
        ("a.conf", "linux\n"), ("a.conf", "# linux /linux\n"), ("a.conf", "linux /\0\n"),
    ],
)  # fmt: skip
def test_what_is_no_entry(tree: Tree, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "", "", "x86_64")))
    root = tree({"linux": "", f"loader/entries/{name}": text})
    assert list(entries(root)) == []
    assert chosen(root) is None


def test_unified_kernel_images(tree: Tree) -> None:
    root = tree({"EFI/Linux/notes.txt": "", "EFI/Linux/text.efi": "no PE", "EFI/Linux/empty.efi": ""})
    osrel = b'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n'
    for name, sections in (
        ("a.efi", {".text": b"x", ".osrel": osrel, ".uname": b"6.1"}),
        ("b.efi", {".osrel": osrel + b"IMAGE_ID=image\nIMAGE_VERSION=7\n", ".cmdline": b"ro module_blacklist=demo\n\0"}),
        ("c.efi", {".text": b"x"}),
        ("d.efi", {".osrel": b"VERSION=1\n"}),
        ("auto-e.efi", {".osrel": osrel}),
    ):
        (root / "EFI/Linux" / name).write_bytes(pe(sections))
    # bootspec_pick_name_version_sort_key.
    a, b = unified(root)
    assert (a.name, a.title, a.image, a.version, a.sort_key) == ("a.efi", "Debian 12", "/EFI/Linux/a.efi", "12", "debian")
    assert (b.version, b.sort_key) == ("7", "image")
    assert (a.options, b.options) == ("", "ro module_blacklist=demo"), "what the image itself tells its kernel"
    assert pe_sections(root / "EFI/Linux/a.efi")[".uname"] == b"6.1"
    (root / "EFI/Linux/f.efi").write_bytes(pe({".osrel": osrel})[:0x150])
    with pytest.raises(Undecided, match="has an image that cannot be read"):
        chosen(root)


def test_the_order_of_what_asks(tree: Tree) -> None:
    root = tree(
        {f"loader/entries/{name}.conf": "linux /linux\n" for name in "abcd"}
        | {"linux": "", "loader/loader.conf": "default a*\n"}
    )
    assert chosen(root) == ("a.conf", "default")
    assert chosen(root, default="b.conf") == ("b.conf", "default")
    assert chosen(root, default="b.conf", one_shot="C.CONF") == ("c.conf", "one-shot")
    assert chosen(root, default="gone", one_shot="gone") == ("a.conf", "default")
    assert chosen(root, default="@saved", last_booted="d.conf") == ("d.conf", "saved")
    assert chosen(root, default="@saved") == ("a.conf", "default")
    tree({"loader/loader.conf": "default gone\n"})
    assert chosen(root) == ("d.conf", "first")
    tree({"loader/loader.conf": "default @SAVED\n"})
    assert chosen(root, last_booted="b.conf") == ("b.conf", "saved")


def test_what_cannot_be_decided(tree: Tree) -> None:
    root = tree({"linux": "", "loader/entries/a_b.conf": "linux /linux\n", "loader/entries/ab.conf": "linux /linux\n"})
    assert chosen(root) == ("ab.conf", "first")
    tree({"loader/entries/a_ b.conf": "linux /linux\n"})
    with pytest.raises(Undecided, match="two entries of the same rank"):
        chosen(root, default="a_*")
    with pytest.raises(Undecided, match="auto-reboot-to-firmware-setup"):
        chosen(root, one_shot="auto-reboot-to-firmware-setup")
    tree({"loader/loader.conf": "x" * 70_000})
    with pytest.raises(Undecided, match="larger than"):
        chosen(root)


def test_boot_counting_puts_bad_entries_last_and_a_pattern_still_finds_them(tree: Tree) -> None:
    root = tree({f"loader/entries/{name}.conf": "linux /linux\n" for name in ("m-1", "m-9+0-3")} | {"linux": ""})
    assert chosen(root) == ("m-1.conf", "first")
    assert chosen(root, default="m-9*") == ("m-9+0-3.conf", "default")
    assert chosen(root, default="m-*") == ("m-1.conf", "default")


def test_an_entry_too_large_to_be_one_is_not_read(tree: Tree) -> None:
    """To compare the versions of two takes the square of their length."""
    for size, refused in ((1 << 13, False), (1 << 14, True)):
        root = tree({"linux": "", "loader/entries/a.conf": f"linux /linux\nversion {'1a' * (size // 2)}\n"})
        if refused:
            with pytest.raises(Undecided, match="has a file that cannot be read"):
                chosen(root)
        else:
            assert chosen(root) == ("a.conf", "first")


def test_names_with_a_null_byte_and_directories_in_place_of_files(tmp_path: Path) -> None:
    assert not systemd_boot.is_there(tmp_path, "/linux\0")
    with pytest.raises(Undecided, match="cannot be read"):
        pe_sections(tmp_path)
    assert systemd_boot.names(tmp_path / "nothing") == []
    assert pe_sections(tmp_path / "nothing") == {}
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(Undecided, match="a directory that cannot be read"):
        systemd_boot.names(tmp_path / "round")
