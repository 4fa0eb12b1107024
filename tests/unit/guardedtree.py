# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a machine with one kernel, for which DKMS has built, signed and installed the package `demo`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import kerneltree
from kerneltree import KERNEL
from keys import Key, variable
from machinetree import write

if TYPE_CHECKING:
    from pathlib import Path

OLD, NEW = Key("old", 1), Key("new", 2)
CONFIG = "CONFIG_MODULE_SIG=y\nCONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\nCONFIG_INTEGRITY_PLATFORM_KEYRING=y\n"
BUILT = OLD.sign(kerneltree.module("demo", build_id="aaaa"))


def make(root: Path) -> None:
    """That machine."""
    kernel = kerneltree.make(root, config=CONFIG)
    headers = root / f"usr/src/linux-headers-{KERNEL}"
    (headers / "scripts").mkdir()
    write(headers / "Makefile", "")
    write(headers / ".config", CONFIG)
    write(root / f"boot/vmlinuz-{KERNEL}", b"image")
    register(root, "1.0")
    write(root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko", BUILT)
    (root / f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64").symlink_to(f"1.0/{KERNEL}/x86_64")
    write(root / "var/lib/dkms/mok.pub", OLD.certificate)
    variable(root, "SecureBoot", b"\0")
    kerneltree.add(kernel, "updates/dkms/demo.ko", BUILT)


def register(root: Path, version: str) -> Path:
    source = root / f"usr/src/demo-{version}"
    built = 'BUILT_MODULE_NAME[0]="demo"\nDEST_MODULE_LOCATION[0]="/updates"\n'
    write(source / "dkms.conf", f'PACKAGE_NAME="demo"\nPACKAGE_VERSION="{version}"\n{built}')
    write(source / "demo.c", "")
    for name in ("dkms.conf", "demo.c"):
        os.utime(source / name, (1e9, 1e9))
    (root / f"var/lib/dkms/demo/{version}").mkdir(parents=True)
    (root / f"var/lib/dkms/demo/{version}/source").symlink_to(f"/usr/src/demo-{version}")
    return source


def register_another(root: Path, name: str) -> None:
    """A second package that makes a module `demo`."""
    source = root / f"usr/src/{name}-1.0"
    write(source / "dkms.conf", (root / "usr/src/demo-1.0/dkms.conf").read_text().replace('NAME="demo"', f'NAME="{name}"', 1))
    (root / f"var/lib/dkms/{name}/1.0").mkdir(parents=True)
    (root / f"var/lib/dkms/{name}/1.0/source").symlink_to(f"/usr/src/{name}-1.0")
