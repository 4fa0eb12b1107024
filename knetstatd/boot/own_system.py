# SPDX-License-Identifier: GPL-2.0-or-later
"""Is what a boot entry starts this system, or another one on the same machine?

Rule: an entry is this system's if its root file system is the one of /etc/fstab, or the one that the running kernel was told.
      If neither is known, nothing stands against it.

Sources: bootparam(7), root= and rootflags=; fstab(5); btrfs(5), subvol=.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot.kernel_parameters import parameters
from knetstatd.core import names
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from pathlib import Path

_LIMIT = 1 << 18
_TAG = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL)=[\"']?([^\"']*)[\"']?")
_UUID = re.compile(r"/dev/disk/by-(part)?uuid/.*")
_CONTAINERS = ("/run/systemd/container", "/run/.containerenv", "/.dockerenv")


class _Root(NamedTuple):
    """A root file system. device: as it is named, "" if it is not.  subvolume: of btrfs, "" if none is named."""

    device: str
    subvolume: str


def other(root: Path, arguments: str) -> str:
    """What an entry takes for its root file system, if that is another system's; "" if it is this one's, or nothing says so.

    arguments: its command line.
    """
    wanted, own = _told(arguments), _own(root)
    if not wanted.device or not own:
        return ""
    same = [one for one in own if _places(root, wanted.device) & _places(root, one.device)]
    if not same:
        return names.clean(wanted.device, 80)
    subvolumes = {one.subvolume for one in same}
    if wanted.subvolume and "" not in subvolumes and wanted.subvolume not in subvolumes:
        return names.clean(f"{wanted.device} subvol={wanted.subvolume}", 80)
    return ""


@once
def _own(root: Path) -> tuple[_Root, ...]:
    """What this system has as its root file system, by all that says so."""
    own = []
    for line in (files.text(files.inside(root, "/etc/fstab"), _LIMIT) or "").splitlines():
        words = line.split()
        if len(words) > 3 and words[1] == "/" and not words[0].startswith("#"):
            own.append(_Root(words[0], _subvolume(words[3])))
    # A container is shown its host's.
    if not any(os.path.lexists(files.inside(root, mark)) for mark in _CONTAINERS):
        own.append(_told(files.text(files.of_kernel(root, "/proc/cmdline"), _LIMIT) or ""))
    return tuple(one for one in own if one.device)


def _told(line: str) -> _Root:
    """The root file system of a command line."""
    words = dict(word.partition("=")[::2] for word in parameters(line))
    return _Root(words.get("root", ""), _subvolume(words.get("rootflags", "")))


def _subvolume(options: str) -> str:
    """The subvolume that options of a mount name, "" for none. `/@` is `@`."""
    named = [option.partition("=")[2] for option in options.split(",") if option.startswith("subvol=")]
    return named[-1].strip("/") if named else ""


def _places(root: Path, device: str) -> set[str]:
    """The names of a device: its own, the link in /dev/disk that a tag stands for, and where that leads."""
    tag = _TAG.fullmatch(device)
    path = f"/dev/disk/by-{tag[1].lower()}/{tag[2]}" if tag else device
    if _UUID.fullmatch(path):
        path = path.lower()
    return {path, os.fspath(files.inside(root, path)) if path.startswith("/dev/") else path}
