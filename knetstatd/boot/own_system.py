# SPDX-License-Identifier: GPL-2.0-or-later
"""Is what a boot entry starts this system, or another one on the same machine? And does GRUB read this system's menu?

Rule 1: an entry is this system's if its root file system is the one of /etc/fstab, or the one that the running kernel was told.
        If neither is known, or can be compared with what the entry names, nothing stands against it.
Rule 2: the GRUB of an ESP reads the menu to which the small grub.cfg beside it leads. If that is not this system's, the menu in
        /boot/grub says nothing.

Sources: bootparam(7), root= and rootflags=; fstab(5); btrfs(5), subvol=; GRUB 2.06 and 2.12, util/grub-install.c (load_cfg),
and Debian's build-efi-images, whose prefix is /EFI/debian.
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
    from collections.abc import Sequence
    from pathlib import Path

_LIMIT = 1 << 18
_TAG = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL)=[\"']?([^\"']*)[\"']?")
_UUID = re.compile(r"/dev/disk/by-(part)?uuid/.*")
_ID = re.compile(r"(?<![\w-])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![\w-])")


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
        compared = any(_are_comparable(root, wanted.device, one.device) for one in own)
        return names.clean(wanted.device, 80) if compared else ""
    subvolumes = {one.subvolume for one in same}
    if wanted.subvolume and "" not in subvolumes and wanted.subvolume not in subvolumes:
        return names.clean(f"{wanted.device} subvol={wanted.subvolume}", 80)
    return ""


@once
def _own(root: Path) -> tuple[_Root, ...]:
    """What this system has as its root file system, by all that says so."""
    own = [_Root(device, _subvolume(options)) for device, options in _mounted(root, "/")]
    # A container is shown its host's: what was told counts alone only if it is what is mounted.
    told = _told(files.text(files.of_kernel(root, "/proc/cmdline"), _LIMIT) or "")
    named = _places(root, re.sub("^(ZFS=|zfs:)", "", told.device)) if told.device else set()
    if own or any(place == "/" and named & _places(root, device) for device, place in _mounts(root)):
        own.append(told)
    return tuple(one for one in own if one.device)


def _mounted(root: Path, place: str) -> list[tuple[str, str]]:
    """The devices that /etc/fstab mounts in a place, each with its options."""
    lines = (line.split() for line in (files.text(files.inside(root, "/etc/fstab"), _LIMIT) or "").splitlines())
    return [(words[0], words[3]) for words in lines if len(words) > 3 and words[1] == place and words[0][0] != "#"]


def is_partition(root: Path, place: str) -> bool | None:
    """Whether something of its own is mounted in a place; None if nothing says so."""
    mounts = _mounts(root)
    if _mounted(root, place) or any(other == place for _, other in mounts):
        return True
    return False if mounts or _mounted(root, "/") else None


def _mounts(root: Path) -> list[tuple[str, str]]:
    """What is mounted on a system that runs: devices and places."""
    lines = (line.split() for line in (files.text(files.of_kernel(root, "/proc/mounts"), _LIMIT) or "").splitlines())
    return [(words[0], words[1]) for words in lines if len(words) > 1]


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
    path = _path(device)
    return {path, os.fspath(files.inside(root, path)) if path.startswith("/dev/") else path}


def _path(device: str) -> str:
    """A device by its name in /dev, if it has one."""
    tag = _TAG.fullmatch(device)
    path = f"/dev/disk/by-{tag[1].lower()}/{tag[2]}" if tag else device
    return path.lower() if _UUID.fullmatch(path) else path


def _are_comparable(root: Path, device: str, other_device: str) -> bool:
    """Whether two names that are not the same are those of two devices: they are of one kind, or udev has said what they are.

    A UUID may be the file system's that another name's partition has. What udev says of that is not there below another root,
    nor for a unit with PrivateDevices=yes.
    """
    kinds = [os.path.dirname(path) or path.partition("=")[0] for path in map(_path, (device, other_device))]
    return kinds[0] == kinds[1] or os.path.isdir(files.inside(root, "/dev/disk"))


# -- the grub.cfg on the ESP ------------------------------------------------------------------------------------------------


def other_menu(root: Path, esps: Sequence[Path], first: Path | None) -> str:
    """The grub.cfg of an ESP by which GRUB reads a menu that is not this system's; "" if none does, or nothing says so.

    first: the loader that the firmware begins with, None if that is not known.
    """
    stubs = [esp / "EFI" / name / "grub.cfg" for esp in esps for name in files.names(esp / "EFI")]
    beside = [stub for stub in stubs if first is not None and os.path.realpath(stub.parent) == os.path.realpath(first.parent)]
    for stub in stubs if not any(map(os.path.isfile, beside)) else beside:
        if _leads_away(root, stub):
            return names.clean(f"/{os.path.relpath(stub, root)}", 80)
    return ""


def _leads_away(root: Path, stub: Path) -> bool:
    """Whether a grub.cfg on an ESP is certainly not the way to this system's menu."""
    text = files.text(stub, _LIMIT)
    if not text or any(_is_same(files.inside(root, f"/boot/{name}/grub.cfg"), stub) for name in ("grub", "grub2")):
        return False
    if not re.search(r"^[ \t]*(configfile|normal)\b", text, re.MULTILINE):
        return "menuentry" in text
    return is_other_disk(root, [word for line in text.splitlines() if "search" in line for word in _ID.findall(line)])


def is_other_disk(root: Path, identifiers: Sequence[str]) -> bool:
    """Whether file systems with these IDs are certainly not the one that has /boot."""
    wanted = [word for word in identifiers if _ID.fullmatch(word)]
    if not wanted or not (own := _boot(root)):
        return False
    return not any(own & _places(root, f"UUID={word}") for word in wanted)


@once
def _boot(root: Path) -> set[str]:
    """The names of the device that has /boot; none if they say nothing of its ID."""
    separate = _mounted(root, "/boot")
    if not separate and os.path.ismount(files.inside(root, "/boot")):
        return set()
    own = {place for device, _ in separate or _mounted(root, "/") for place in _places(root, device)}
    known = any(place.startswith("/dev/disk/by-uuid/") for place in own) or os.path.isdir(files.inside(root, "/dev/disk"))
    return own if known else set()


@once
def subvolumes(root: Path) -> frozenset[str]:
    """The subvolumes of btrfs in which this system lies; GRUB's paths begin with one."""
    mounted = [_subvolume(options) for place in ("/", "/boot") for _, options in _mounted(root, place)]
    return frozenset(filter(None, (*mounted, *(one.subvolume for one in _own(root)))))


def _is_same(path: Path, other_path: Path) -> bool:
    try:
        return os.path.samefile(path, other_path)
    except OSError:
        return False
