# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes a whole system for tests: two kernels, a boot menu, dkms's tree with the package `demo`, and our configuration."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import kerneltree
from kerneltree import KERNEL

if TYPE_CHECKING:
    from pathlib import Path

NEWER = "6.1.0-2-amd64"
LATER = 4e9  # seconds: a source that is changed by a test is older than its module
# Directories that an administrator may have put elsewhere, with a link in their place.
MOVABLE = (
    "etc/knetstatd", "etc/modprobe.d", "etc/dkms", "boot/grub", "boot", f"usr/src/linux-headers-{KERNEL}", "usr/src/demo-1.0",
    "usr/src", "usr/lib/modules", "var/lib/dpkg", "var/lib/dkms", "var/lib",
)  # fmt: skip
# Files that may be links themselves.
LINKABLE = (
    "etc/knetstatd/knetstatd.toml", "etc/modprobe.d/demo.conf", "etc/dkms/framework.conf", "boot/grub/grub.cfg",
    "boot/grub/grubenv", f"boot/vmlinuz-{KERNEL}", f"boot/config-{KERNEL}", "var/lib/dpkg/status",
    f"usr/src/linux-headers-{KERNEL}/Module.symvers", f"usr/src/linux-headers-{KERNEL}/Makefile",
    f"usr/src/linux-headers-{KERNEL}/include/generated/utsrelease.h", "usr/src/demo-1.0/dkms.conf",
    f"usr/lib/modules/{KERNEL}/modules.dep", f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko",
    f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko",
)  # fmt: skip


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make(root: Path, kernel: str = KERNEL, config: str = 'modules = ["demo"]\nload = []\n') -> Path:
    """A system whose boot loader starts `kernel`. KERNEL has the module of `demo`; NEWER, which is there too, has not."""
    for release in (KERNEL, NEWER):
        kerneltree.make(root, release)
        headers = root / f"usr/src/linux-headers-{release}"
        (headers / "scripts").mkdir()
        write(headers / "Makefile", "")
        write(headers / ".config", "")
        write(root / f"boot/vmlinuz-{release}", b"image")
    write(root / "boot/grub/grub.cfg", _menu(KERNEL) + _menu(NEWER) + 'load_env\nset default="${saved_entry}"\n')
    write(root / "boot/grub/grubenv", f"# GRUB Environment Block\nsaved_entry=gnulinux-{kernel}\n")
    write(root / "etc/knetstatd/knetstatd.toml", config)
    write(root / "etc/modprobe.d/demo.conf", "blacklist demo\n")
    write(root / "etc/dkms/framework.conf", "mok_signing_key=/etc/key\nmok_certificate=/etc/certificate\n")
    write(root / "var/lib/dpkg/status", "Package: linux-base\nStatus: install ok installed\n\n")
    built = 'BUILT_MODULE_NAME[0]="demo"\nDEST_MODULE_LOCATION[0]="/updates"\n'
    write(root / "usr/src/demo-1.0/dkms.conf", f'PACKAGE_NAME="demo"\nPACKAGE_VERSION="1.0"\n{built}')
    os.utime(root / "usr/src/demo-1.0/dkms.conf", (1e9, 1e9))
    module = kerneltree.module("demo", build_id="aaaa")
    package = root / "var/lib/dkms/demo"
    os.utime(write(package / f"1.0/{KERNEL}/x86_64/module/demo.ko", module), (LATER, LATER))
    (package / "1.0/source").symlink_to("/usr/src/demo-1.0")
    (package / f"kernel-{KERNEL}-x86_64").symlink_to(f"1.0/{KERNEL}/x86_64")
    kerneltree.add(root / f"usr/lib/modules/{KERNEL}", "updates/dkms/demo.ko", module)
    return root


def upgrade(root: Path) -> None:
    """What a -dkms package leaves in dkms's tree after an upgrade with the same version: it is registered."""
    package = root / "var/lib/dkms/demo"
    shutil.rmtree(package, ignore_errors=True)
    (package / "1.0").mkdir(parents=True)
    (package / "1.0/source").symlink_to("/usr/src/demo-1.0")


def _menu(kernel: str) -> str:
    return f"menuentry 'Linux {kernel}' --id gnulinux-{kernel} {{\nlinux /boot/vmlinuz-{kernel} root=/dev/vda1 quiet\n}}\n"


def relink(root: Path, place: str) -> None:
    """Moves a file or directory elsewhere in the system, and leaves an absolute link: on this machine it leads to nothing."""
    away = root / "srv/moved" / place.replace("/", "-")
    away.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(root / place, away)
    (root / place).symlink_to(f"/srv/moved/{away.name}")


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """What changes if anything below a root is written, made or deleted."""
    return {
        os.path.relpath(path, root): ((st := os.lstat(path)).st_ino, st.st_mtime_ns, st.st_ctime_ns)
        for where, directories, names in os.walk(root)
        for path in (where, *(os.path.join(where, name) for name in (*directories, *names)))
    }
