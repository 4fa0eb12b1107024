# SPDX-License-Identifier: GPL-2.0-or-later
"""Which directories are watched; that the daemon hears of them is shown in the containers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.core import config
from knetstatd.machine import paths
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

K = "6.1.0-9-amd64"


def watched(root: Path) -> set[tuple[str, str]]:
    machine = Machine(root, config.Config(modules=("m", "gone")))
    machine.refresh()
    return {(label, f"/{os.path.relpath(path, root)}") for label, path in machine.watched()}


def test_what_is_watched(tree: Make) -> None:
    root = tree({
        "lib": "-> usr/lib", f"usr/lib/modules/{K}/modules.builtin": "", f"boot/vmlinuz-{K}": "", "boot/grub/": "",
        "etc/dkms/": "", "var/lib/dpkg/status": "", "usr/src/m-1/dkms.conf": "", "usr/src/m-1/sub/deep/m.c": "",
        "usr/src/m-1/.git/refs/": "", "var/lib/dkms/m/1/source": "-> /usr/src/m-1",
        "var/lib/dkms/gone/1/source": "-> /usr/src/gone-1", "var/lib/dkms/other/1/source": "-> /usr/src/other-1",
        "usr/src/other-1/dkms.conf": "",
    })  # fmt: skip
    assert watched(root) == {
        ("modules", "/usr/lib/modules"), (f"kernel:{K}", f"/usr/lib/modules/{K}"), ("boot", "/boot"), ("boot", "/boot/grub"),
        ("boot", "/etc/dkms"), ("boot", "/var/lib/dpkg"), ("dkms", "/var/lib/dkms"), ("dkms", "/var/lib/dkms/m"),
        ("dkms", "/var/lib/dkms/gone"), ("source", "/usr/src/m-1"), ("source", "/usr/src/m-1/sub"),
        ("source", "/usr/src/m-1/sub/deep"), ("source", "/usr/src/gone-1"),
    }  # fmt: skip


def test_of_a_huge_source_a_part_is_watched(tree: Make) -> None:
    source = tree({f"{number:03}/": "" for number in range(300)})
    assert len(list(paths.watched(source, [], [], [source]))) == 3 + 1 + 200
