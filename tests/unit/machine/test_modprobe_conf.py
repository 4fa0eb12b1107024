# SPDX-License-Identifier: GPL-2.0-or-later
"""modprobe's configuration, merged as modprobe merges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.machine import modprobe_conf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_lines(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({"etc/modprobe.d/a.conf": (
        "# blacklist no\nblacklist my-mod\nblacklist\n\n  install other  /bin/false \\\n  --now\n"
        "alias net-pf-* third\noptions x y=1\nblacklist\tlast\n"
    )})  # fmt: skip
    found = modprobe_conf.rules(root)
    assert found.blacklist == (
        modprobe_conf.Line("my_mod", "", "/etc/modprobe.d/a.conf line 2"),
        modprobe_conf.Line("last", "", "/etc/modprobe.d/a.conf line 9"),
    )
    assert found.install == (modprobe_conf.Line("other", "/bin/false   --now", "/etc/modprobe.d/a.conf line 6"),)
    assert found.options == (modprobe_conf.Line("x", "y=1", "/etc/modprobe.d/a.conf line 8"),)
    assert modprobe_conf.find(found.blacklist, "my_mod") == found.blacklist[0]
    assert modprobe_conf.find(found.blacklist, "no") is None
    alias = modprobe_conf.redirect(found, "net_pf_3")
    assert alias is not None
    assert alias.text == "third"
    assert modprobe_conf.redirect(found, "third") is None


def test_an_alias_to_itself_is_none(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({"etc/modprobe.d/a.conf": "alias my-mod my_mod\n"})
    assert modprobe_conf.redirect(modprobe_conf.rules(root), "my_mod") is None


@pytest.mark.parametrize("directory", ["etc", "run", "usr/local/lib", "usr/lib", "lib"])
def test_every_directory(tree: Callable[[dict[str, str]], Path], directory: str) -> None:
    root = tree({f"{directory}/modprobe.d/x.conf": "blacklist m\n", f"{directory}/modprobe.d/x.txt": "blacklist n\n"})
    assert [line.module for line in modprobe_conf.rules(root).blacklist] == ["m"]


def test_the_first_directory_has_a_name(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({
        "usr/lib/modprobe.d/a.conf": "blacklist hidden\n",
        "etc/modprobe.d/a.conf": "-> /dev/null",
        "usr/lib/modprobe.d/c.conf": "blacklist later\n",
        "etc/modprobe.d/b.conf": "blacklist first\n",
    })  # fmt: skip
    assert [line.module for line in modprobe_conf.rules(root).blacklist] == ["first", "later"]


def test_what_is_loaded_at_boot(tree: Callable[[dict[str, str]], Path]) -> None:
    root = tree({"etc/modules": "# x\nold opt=1\n", "usr/lib/modules-load.d/a.conf": "; y\nmy-mod\n"})
    found = modprobe_conf.rules(root).load
    assert [(line.module, line.where) for line in found] == [
        ("my_mod", "/usr/lib/modules-load.d/a.conf line 2"), ("old", "/etc/modules line 2"),
    ]  # fmt: skip


def test_nothing(tmp_path: Path) -> None:
    assert modprobe_conf.rules(tmp_path) == modprobe_conf.Rules()
