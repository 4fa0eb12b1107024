# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's files on a machine: where its images lie, what it saved, what all its entries start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.boot import grub
from knetstatd.boot.grub_state import Undecided

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]


@pytest.mark.parametrize(
    "image", ["/boot/vmlinuz-1", "/vmlinuz-1", "/@/boot/vmlinuz-1", "(hd0,gpt2)/vmlinuz-1", "/ROOT/debian@/boot/vmlinuz-1"]
)
def test_an_image_is_found_whatever_is_mounted_where(tree: Tree, image: str) -> None:
    root = tree({"boot/vmlinuz-1": ""})
    assert grub.find(root, image) == root / "boot/vmlinuz-1"


def test_an_image_that_is_nowhere(tree: Tree) -> None:
    root = tree({"boot/vmlinuz-1": ""})
    assert not grub.find(root, "/boot/vmlinuz-2").exists()
    assert not grub.find(root, "").is_file()


ONE, TWO = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ("linux /boot/vmlinuz-1", ""), (f"search --no-floppy --fs-uuid --set=root {ONE}\nlinux /boot/vmlinuz-1", ""),
        (f"search --no-floppy --fs-uuid --set=root --hint='hd1,gpt2' {TWO}\nlinux /boot/vmlinuz-1", "of another disk"),
        (f"search.fs_uuid {TWO} root hd0,gpt1\nlinux /boot/vmlinuz-1", "of another disk"),
        (f"search.fs_uuid {TWO} other\nlinux /boot/vmlinuz-1", ""),
        (f"set root='hd1,gpt2'\nsearch --fs-uuid --set=root {ONE}\nlinux /boot/vmlinuz-1", ""),
        ("set root='hd1,gpt2'\nlinux /boot/vmlinuz-1", "of another disk than /boot's: hd1,gpt2"),
        ("set root='hd0,gpt2'\nlinux /boot/vmlinuz-1", ""),
        ("linux (hd1,gpt2)/boot/vmlinuz-1", "of another disk than /boot's: hd1,gpt2"),
        ("unset root\nlinux /boot/vmlinuz-1", "of another disk"), ("set root=\nlinux /boot/vmlinuz-1", "of another disk"),
        ("search --label --set=root x\nlinux /boot/vmlinuz-1", ""), ("linux boot/vmlinuz-1", "which is not there"),
        ("linux /old/vmlinuz-1", "which is not there"), ("linux /@/boot/vmlinuz-1", ""), ("linux /main/boot/vmlinuz-1", ""),
        ("linux /boot/vmlinuz-1\ninitrd initrd.img-1", "'initrd.img-1' without a /"),
        ("linux /boot/vmlinuz-2", ""),
    ],
)  # fmt: skip
def test_an_image_of_this_system(tree: Tree, lines: str, reason: str) -> None:
    root = tree({
        "boot/grub/grub.cfg": f"set timeout=0\nmenuentry a {{\n{lines}\n}}\n", "boot/vmlinuz-1": "", "boot/initrd.img-1": "",
        "etc/fstab": f"UUID={ONE} / btrfs subvol=/main 0 1\n",
    })  # fmt: skip
    if not reason:
        assert grub.choose(root)
        assert len(grub.starts(root)) == 1
        return
    with pytest.raises(Undecided, match=reason):
        grub.choose(root)
    assert grub.starts(root) == ()


def test_an_initrd_of_another_directory_is_not_the_one_in_boot(tree: Tree) -> None:
    root = tree({"boot/initrd.img-1": ""})
    assert grub.find(root, "/old/initrd.img-1") == root / "old/initrd.img-1"


def test_saved_variables_and_all_entries(tree: Tree) -> None:
    root = tree({
        "boot/grub/grub.cfg": "menuentry a { linux /a x; }\nsubmenu s { menuentry b { linux /b $v; }\n}\n",
        "boot/grub2/grub.cfg": "menuentry c { linux /c; }\nmenuentry d {\n",
        "boot/grub/grubenv": "# GRUB Environment Block\nv=1\n",
    })  # fmt: skip
    assert grub.saved(root) == {"v": "1"}
    assert [(start.image, start.arguments) for start in grub.starts(root)] == [("/a", "x"), ("/b", "")]


def test_a_fallback_where_the_image_is_missing(tree: Tree) -> None:
    entries = "menuentry a { linux /boot/vmlinuz-1; }\nmenuentry b { linux /boot/vmlinuz-2; }\n"
    root = tree({"boot/grub/grub.cfg": f"timeout=0\nfallback=1\n{entries}", "boot/vmlinuz-2": ""})
    found = grub.choose(root)
    assert found
    assert found.start.image == "/boot/vmlinuz-2"
    tree({"boot/vmlinuz-1": ""})
    found = grub.choose(root)
    assert found
    assert found.start.image == "/boot/vmlinuz-1"


def test_of_two_images_the_first_stays_if_the_other_is_missing(tree: Tree) -> None:
    text = "timeout=0\nmenuentry a {\nlinux /boot/vmlinuz-1\nlinux /boot/vmlinuz-2\n}\n"
    root = tree({"boot/grub/grub.cfg": text, "boot/vmlinuz-1": ""})
    with pytest.raises(Undecided, match="'/boot/vmlinuz-2' is not there|/boot/vmlinuz-2 is not there"):
        grub.choose(root)
    tree({"boot/vmlinuz-2": ""})
    found = grub.choose(root)
    assert found
    assert found.start.image == "/boot/vmlinuz-2"


def test_what_may_not_be_read_is_not_absent(tree: Tree) -> None:
    assert grub.choose(tree({})) is None
    root = tree({"boot/grub/grub.cfg/": ""})
    with pytest.raises(Undecided, match=r"/boot/grub/grub\.cfg.*Is a directory"):
        grub.choose(root)


def test_files_that_cannot_be_read_are_no_menu_and_no_variables(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg/": "", "boot/grub/grubenv/": "", "boot/grub2/grub.cfg": "menuentry c { linux /c; }\n"})
    assert [start.image for start in grub.starts(root)] == ["/c"]
    assert grub.saved(root) == {}
