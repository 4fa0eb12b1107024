# SPDX-License-Identifier: GPL-2.0-or-later
"""The modules without which a machine has no root file system: its type, and the drivers of what it lies on.

Sources: fstab(5); kernel-parameters.txt, rootfstype=; zfs-initramfs, root=ZFS=; initramfs-tools, block_dev_mod_add().
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.boot import bootloader
from knetstatd.boot.kernel_parameters import parameters
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_LIMIT = 1 << 18


@once
def needed(root: Path, kernel: str) -> tuple[tuple[str, str], ...]:
    """Those modules, each with why. What cannot be read names none."""
    return tuple(_needed(root, kernel))


def _needed(root: Path, kernel: str) -> Iterator[tuple[str, str]]:
    for words in (line.split() for line in (files.text(files.inside(root, "/etc/fstab"), _LIMIT) or "").splitlines()):
        if len(words) > 2 and words[1] == "/" and not words[0].startswith("#"):
            yield words[2], f"the root file system is {words[2]} (/etc/fstab)"
    for line in bootloader.command_lines(root, kernel):
        for word in parameters(line):
            if word.startswith("rootfstype="):
                for name in word.partition("=")[2].split(","):
                    yield name, f"the root file system is {name} (the boot entry says)"
            if word.startswith("root=ZFS=") or word == "boot=zfs":
                yield "zfs", "the root file system is zfs (the boot entry says)"
    device = ""
    for words in (line.split() for line in (files.text(files.of_kernel(root, "/proc/mounts"), _LIMIT) or "").splitlines()):
        if len(words) > 2 and words[1] == "/":
            device = words[0]
            yield words[2], f"the root file system is {words[2]}"
    if device.startswith("/dev/"):
        for driver in _below(root, [files.inside(root, device).name]):
            yield driver, f"the root file system lies on {device}, which is driven by it"


def _below(root: Path, devices: Iterable[str]) -> Iterator[str]:
    """The modules that drive block devices, those below them, and every bus on the way (block_dev_mod_add())."""
    todo, seen = list(devices), set()
    while todo:
        if (name := todo.pop()) in seen:
            continue
        seen.add(name)
        here = files.of_kernel(root, f"/sys/class/block/{name}")
        todo += files.names(here / "slaves") or files.names(here.parent / "slaves")
        while (root / "sys") in here.parents:
            module = files.inside(root, f"{files.below(root, here)}/driver/module")
            if os.path.isdir(module):
                yield module.name
            here = here.parent
