# SPDX-License-Identifier: GPL-2.0-or-later
"""What the firmware keeps in its EFI variables, and which loader it begins the next boot with.

Sources: the UEFI specification, 3.1 and 3.3 (load options, globally defined variables) and 10.3 (device paths); systemd's Boot
Loader Interface.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LOADER, _GLOBAL = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f", "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_VARIABLES = "/sys/firmware/efi/efivars"
_ACTIVE, _MEDIA, _FILE = 1, 4, 4  # LOAD_OPTION_ACTIVE; the type and the subtype of a file's path
_OTHERS = ("refind", "limine", "opencore", "clover")
_MOST = 64  # entries of the order that are looked at
_SYSTEMD_BOOT = b"#### LoaderInfo: systemd-boot "


def variable(root: Path, name: str, guid: str = _GLOBAL) -> bytes:
    """A variable's contents, without the four bytes of attributes; empty where unset."""
    try:
        return files.read(files.of_kernel(root, f"{_VARIABLES}/{name}-{guid}"), 4096)[4:]
    except (OSError, KnetstatdError):
        return b""


def text(root: Path, name: str) -> str:
    """A variable of the Boot Loader Interface: UTF-16 with a NUL. "" where unset."""
    return variable(root, name, _LOADER).decode("utf-16-le", "replace").partition("\0")[0]


def other_loader(root: Path, esps: Sequence[Path], by_systemd_boot: bool) -> str:
    """The file of another loader that the firmware comes to before the one that started this system; "" if there is none.

    esps: where the ESP may be mounted.  by_systemd_boot: what started this system; else it was GRUB, or is not known.
    """
    current = variable(root, "BootCurrent")
    for number, shown, path in _order(root, esps) if len(current) == 2 else ():
        if number == current:
            break
        if path is not None and ("\\microsoft\\" in shown.lower() or _is_other(path, by_systemd_boot)):
            return names.clean(shown, 80)
    return ""


def first(root: Path, esps: Sequence[Path]) -> Path | None:
    """The loader that the firmware comes to first, of those that lie on the ESP; None if it does not say so."""
    return next((path for _, _, path in _order(root, esps) if path is not None), None)


def may_start(root: Path) -> bool:
    """Whether the machine may have been started by an ESP's loader: certainly not if its kernel sees no EFI."""
    place = files.of_kernel(root, "/sys/firmware")
    return os.path.isdir(place / "efi") or not os.path.isdir(place)


def is_hidden(root: Path) -> bool:
    """Whether there are variables that this user may not read."""
    place = files.of_kernel(root, _VARIABLES)
    return os.path.isdir(place) and not os.access(place, os.R_OK | os.X_OK)


def _order(root: Path, esps: Sequence[Path]) -> Iterator[tuple[bytes, str, Path | None]]:
    """The boot order: of each entry its number, the path that it names, and where that lies; None if not on the ESP."""
    order = variable(root, "BootOrder")
    for at in range(0, min(len(order), 2 * _MOST) - 1, 2):
        number = order[at : at + 2]
        shown = _path(variable(root, f"Boot{int.from_bytes(number, 'little'):04X}"))
        path = next((place for esp in esps if shown and (place := _inside(esp, shown)) is not None), None)
        yield number, shown, path


def _path(option: bytes) -> str:
    """The file that a load option names, "" if it is not active or names none."""
    try:
        attributes, length = struct.unpack_from("<IH", option)
        at = next(i for i in range(6, len(option), 2) if option[i : i + 2] == b"\0\0") + 2
        end = at + length if attributes & _ACTIVE else at
        while at < end:
            kind, subtype, size = struct.unpack_from("<BBH", option, at)
            if (kind, subtype) == (_MEDIA, _FILE):
                return option[at + 4 : at + size].decode("utf-16-le", "replace").partition("\0")[0]
            at += max(size, 4)
    except (struct.error, StopIteration):
        pass
    return ""


def _inside(directory: Path, shown: str) -> Path | None:
    """A file of a FAT file system, where capital letters do not count; None if it is not there."""
    for part in filter(None, shown.split("\\")):
        name = next((name for name in files.names(directory) if name.lower() == part.lower()), None)
        if name is None:
            return None
        directory /= name
    return directory if os.path.isfile(directory) else None


def _is_other(path: Path, by_systemd_boot: bool) -> bool:
    """Whether a loader is certainly another. One that is not recognised may be GRUB under any name."""
    try:
        is_systemd_boot = _SYSTEMD_BOOT in files.read(path, 1 << 20)
    except (OSError, KnetstatdError):
        is_systemd_boot = False
    name = path.name.lower()
    if name.startswith(_OTHERS):
        return True
    return name.startswith(("shim", "grub")) if by_systemd_boot else is_systemd_boot
