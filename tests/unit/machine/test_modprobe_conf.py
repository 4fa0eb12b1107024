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


@pytest.mark.parametrize(
    ("files", "closing"),
    [
        ({"etc/sysctl.d/a.conf": "kernel.modules_disabled=1\n", "usr/lib/sysctl.d/b.conf": "kernel/modules_disabled=0\n"}, ""),
        ({"etc/sysctl.d/b.conf": "kernel.modules_disabled=1\n", "usr/lib/sysctl.d/a.conf": "kernel/modules_disabled=0\n"}, "b"),
        ({"etc/sysctl.d/a.conf": "kernel.modules_*=1\n"}, "a"),
        ({"etc/sysctl.d/a.conf": "*.[^x]odules_disabled = 0x1 # yes\n"}, "a"),
        ({"etc/sysctl.d/a.conf": "kernel.[!m]odules_disabled=1\n"}, ""),
        ({"etc/sysctl.d/a.conf": "kernel.[[:lower:]]odules_disabled=1\n"}, "a"),
        ({"etc/sysctl.d/a.conf": "*=1\n"}, ""),
        ({"etc/sysctl.d/a.conf": "kernel.modules_*=1\n", "etc/sysctl.d/b.conf": "- kernel.modules_disabled\n"}, ""),
        ({"etc/sysctl.d/a.conf": "kernel.modules_*=1\n", "etc/sysctl.d/b.conf": "-kernel.modules_*\n"}, ""),
        ({"etc/sysctl.d/a.conf": "kernel.modules_disabled\n/kernel//modules_disabled=1\n"}, "a"),
        ({"etc/sysctl.d/a.conf": "-.kernel.modules_disabled=1\n"}, "a"),
        ({"etc/sysctl.d/a.conf": "kernel.modules/disabled=1\nkernel/modules.disabled=1\n"}, ""),
        ({"etc/sysctl.d/.a.conf": "kernel.modules_disabled=1\n"}, ""),
        ({"etc/sysctl.d/a.conf": "-> /dev/null", "usr/lib/sysctl.d/a.conf": "kernel.modules_disabled=1\n"}, ""),
        ({"etc/sysctl.d/a.conf": "-> ../sysctl.conf", "etc/sysctl.conf": "kernel.modules_disabled=1\n"}, "a"),
        ({"usr/local/lib/sysctl.d/a.conf": "kernel.modules_disabled=1\n"}, "a"),
        ({"etc/credstore/sysctl.extra": "kernel.modules_disabled=1\n"}, "sysctl.extra"),
    ],
)  # fmt: skip
def test_what_closes_the_kernel(tree: Callable[[dict[str, str]], Path], files: dict[str, str], closing: str) -> None:
    """tests/container/test_sysctl_real.py asks systemd-sysctl."""
    closed = modprobe_conf.rules(tree(files)).closed
    assert [line.where.partition(" ")[0].rpartition("/")[2].removesuffix(".conf") for line in closed] == [closing] * bool(
        closing
    )


def test_a_hidden_file_is_read_by_nobody(tree: Callable[[dict[str, str]], Path]) -> None:
    found = modprobe_conf.rules(tree({"etc/modules-load.d/.x.conf": "a\n", "etc/modprobe.d/.x.conf": "blacklist b\n"}))
    assert (found.load, found.blacklist) == ((), ())
