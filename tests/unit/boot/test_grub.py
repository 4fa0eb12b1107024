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


def test_what_may_not_be_read_is_not_absent(tree: Tree) -> None:
    assert grub.choose(tree({})) is None
    root = tree({"boot/grub/grub.cfg/": ""})
    with pytest.raises(Undecided, match=r"/boot/grub/grub\.cfg.*Is a directory"):
        grub.choose(root)


def test_files_that_cannot_be_read_are_no_menu_and_no_variables(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg/": "", "boot/grub/grubenv/": "", "boot/grub2/grub.cfg": "menuentry c { linux /c; }\n"})
    assert [start.image for start in grub.starts(root)] == ["/c"]
    assert grub.saved(root) == {}
