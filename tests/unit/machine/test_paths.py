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
        ("dkms", "/usr/src"),
        ("boot", "/etc/dkms"), ("boot", "/var/lib/dpkg"), ("dkms", "/var/lib/dkms"), ("dkms", "/var/lib/dkms/m"),
        ("dkms", "/var/lib/dkms/gone"), ("source", "/usr/src/m-1"), ("source", "/usr/src/m-1/sub"),
        ("source", "/usr/src/m-1/sub/deep"), ("source", "/usr/src/gone-1"),
        *(("state", f"/var/lib/knetstatd/{name}") for name in ("kernels", "rehearsals", "digests")),
    }  # fmt: skip


def test_of_a_huge_source_a_part_is_watched(tree: Make) -> None:
    source = tree({f"{number:03}/": "" for number in range(300)})
    assert len(list(paths.watched(source, [], [], [source]))) == 4 + 1 + 200


def test_every_directory_of_a_guarded_kernel_is_watched_from_which_modprobe_takes_modules(tree: Make) -> None:
    other = "5.10.0-1-amd64"
    root = tree({
        f"lib/modules/{k}/{name}": ""
        for k in (K, other)
        for name in ("kernel/fs/a.ko", "updates/dkms/m.ko", "extra/m/m.ko", "weak-updates/m/sub/m.ko", "build/scripts/x")
    })  # fmt: skip
    below = {
        f"{K}/{name}"
        for name in ("updates", "updates/dkms", "extra", "extra/m", "weak-updates", "weak-updates/m", "weak-updates/m/sub")
    }
    base = root / "lib/modules"
    places = {(label, os.path.relpath(path, base)) for label, path in paths.watched(root, [K, other], [], [], {K})}
    assert {(label, path) for label, path in places if "/" in path and not path.startswith("..")} == {
        (f"kernel:{K}", path) for path in below
    }
    assert {(f"kernel:{K}", K), (f"kernel:{other}", other)} <= places
