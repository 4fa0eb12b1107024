# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the files lie that say whether a module will load on a kernel: Debian's places, and other distributions'."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.dkms import dkms_framework, dkms_tree
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

# What says which kernel is next, what modprobe may do, and what dkms does. dpkg's directory moves when packages have: a new
# compiler or new headers are told by nothing else. It is quiet while no package manager runs.
_CONFIGURATION = (
    "/boot/grub", "/boot/grub2", "/boot/loader/entries", "/etc/modprobe.d", "/etc/modules-load.d", "/usr/lib/modprobe.d",
    "/etc/sysctl.d", "/etc/dkms", dkms_framework.DIRECTORY, "/var/lib/dpkg",
)  # fmt: skip
_MOST_WATCHED = 200  # directories of one source tree; an inotify watch keeps a kilobyte of the kernel's memory


# Where modprobe takes modules from that no kernel package brings: dkms's place on Debian, on others, and weak-modules(8)'s.
_ADDED = ("updates", "extra", "weak-updates")


def watched(
    root: Path, kernels: Iterable[str], modules: Iterable[str], sources: Iterable[Path], guarded: Collection[str] = ()
) -> Iterator[tuple[str, Path]]:
    """The directories to watch, each with a label: "modules", "boot", "dkms", "source", or "kernel:" and a release.

    modules: the guarded DKMS packages.  sources: those of them that are registered.  guarded: those of the kernels that are.
    """
    base = files.inside(root, "/lib/modules")
    yield "modules", base
    yield "boot", files.inside(root, "/boot")
    for directory in _CONFIGURATION:
        if os.path.isdir(path := files.inside(root, directory)):
            yield "boot", path
    registered = dkms_tree.tree(root)
    yield "dkms", registered
    yield "dkms", files.inside(root, dkms_framework.framework(root).source_tree)
    for name in modules:
        if os.path.isdir(registered / name):
            yield "dkms", registered / name
    for source in sources:
        yield "source", source  # also if it is gone, and may come back
        for where, below, _ in itertools.islice(os.walk(source), _MOST_WATCHED):
            below[:] = sorted(name for name in below if name != ".git")
            yield "source", Path(where)
    for kernel in kernels:
        yield f"kernel:{kernel}", base / kernel
        for name in _ADDED if kernel in guarded else ():
            for where, below, _ in itertools.islice(os.walk(base / kernel / name), _MOST_WATCHED):
                below.sort()
                yield f"kernel:{kernel}", Path(where)


def inputs(root: Path, kernel: str) -> tuple[Path, ...]:
    """The files on which every proof for a kernel depends, besides the module's own; also those that do not exist.

    With the same identities an answer stays the same. The kernel's own modules change with modules.dep.
    """
    tree = files.inside(root, f"/lib/modules/{kernel}")
    tables = [tree / name for name in ("modules.dep", "modules.dep.bin", "modules.order", "modules.symbols")]
    added = [tree / name for name in ("updates", "updates/dkms", "extra")]
    disk = [path for path in (initrd(root, kernel),) if path is not None]
    said = (*configurations(root, kernel), *symvers(root, kernel), *releases(root, kernel))
    return (*added, *disk, *tables, *said)


def images(root: Path, kernel: str) -> list[Path]:
    """Its boot image, the first of these that there is. Debian up to 6.12: /boot/vmlinuz-K; 7.x, Fedora: with the modules."""
    places = (f"/boot/vmlinuz-{kernel}", f"/lib/modules/{kernel}/vmlinuz", f"/boot/vmlinux-{kernel}")
    return [files.inside(root, place) for place in places]


def configurations(root: Path, kernel: str) -> list[Path]:
    """Its configuration, the first of these that there is."""
    places = (f"/boot/config-{kernel}", f"/lib/modules/{kernel}/config", f"/lib/modules/{kernel}/build/.config")
    return [files.inside(root, place) for place in places]


def _headers(kernel: str) -> tuple[str, str]:
    return f"/lib/modules/{kernel}/build", f"/usr/src/linux-headers-{kernel}"


def releases(root: Path, kernel: str) -> list[Path]:
    """The file in which each of `headers` says whose they are."""
    return [files.inside(root, f"{place}/include/generated/utsrelease.h") for place in _headers(kernel)]


def symvers(root: Path, kernel: str) -> list[Path]:
    """Its Module.symvers: beside each of `headers` as Debian and most others have it, then Fedora's and RHEL's two places."""
    packed = [f"/boot/symvers-{kernel}", f"/lib/modules/{kernel}/symvers"]
    return [files.inside(root, f"{place}/Module.symvers") for place in _headers(kernel)] + [
        files.inside(root, place + suffix) for place in packed for suffix in names.SUFFIXES
    ]


def initrd(root: Path, kernel: str) -> Path | None:
    """Its initrd, None if it has none: Debian's place, then dracut's, then SUSE's."""
    for place in (f"/boot/initrd.img-{kernel}", f"/boot/initramfs-{kernel}.img", f"/boot/initrd-{kernel}"):
        path = files.inside(root, place)
        if os.path.isfile(path):
            return path
    return None
