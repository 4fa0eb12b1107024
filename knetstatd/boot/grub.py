# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB as it is installed on this machine: its menu, read from /boot/grub or /boot/grub2.

Rule: what exists and cannot be read is Undecided. Only what is not there is not there.
"""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import own_system, systemd_boot
from knetstatd.boot.grub_state import UNKNOWN, Undecided, environment
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.boot import grub_cfg
    from knetstatd.boot.grub_state import MenuEntry, Start

DIRECTORIES = ("boot/grub", "boot/grub2")
_PLATFORMS = ("i386-pc", "x86_64-efi", "i386-efi", "arm64-efi", "arm-efi", "riscv64-efi", "powerpc-ieee1275", "loongarch64-efi")
# A grub.cfg of a hundred kernels has 200 KB.
_LARGEST = 1 << 20
_OTHER_DISK = re.compile(r"hd[1-9]|none$")  # hd0 is the one that GRUB was started from, if nothing is searched for
_DEEPEST = 100  # directories of an image's path, each of which may be where its disk is mounted; real ones have four


class Choice(NamedTuple):
    """What GRUB starts, "" for no Linux; what decided; and the way there."""

    start: Start
    source: str
    detail: str


def choose(root: Path) -> Choice | None:
    """What GRUB starts; None if GRUB is not here. Raises Undecided, with a whole sentence."""
    choices = []
    for directory in _with_menu(root):
        try:
            choice = _choose(root, directory)
        except Undecided as error:
            raise Undecided(f"GRUB's menu (/{directory}/grub.cfg) {error}") from None
        choices.append(choice)
    if len({choice.start.image for choice in choices}) > 1:
        raise Undecided("there are two GRUB menus, in /boot/grub and /boot/grub2, and they start different kernels")
    if not choices and (left := next((f"/{d}" for d in DIRECTORIES if _is_installed(files.inside(root, f"/{d}"))), "")):
        raise Undecided(f"GRUB is installed in {left}, and has no grub.cfg there")
    return choices[0] if choices else None


def _with_menu(root: Path) -> list[str]:
    """The directories with a menu; a link to nothing is one that cannot be read, and none is none."""
    return [directory for directory in DIRECTORIES if os.path.lexists(files.inside(root, f"/{directory}") / "grub.cfg")]


def _is_installed(directory: Path) -> bool:
    """Whether grub-install was here."""
    return os.path.exists(directory / "grubenv") or any(os.path.exists(directory / name) for name in _PLATFORMS)


def _choose(root: Path, directory: str) -> Choice:
    menu = _menu(root, directory)
    start = menu.next()
    if start is None:
        raise Undecided("has no entries")
    if start.image and (reason := _elsewhere(root, start)):
        raise Undecided(reason)
    script = _read(root, directory, "grub.cfg") or b""
    saved = environment(_read(root, directory, "grubenv") or b"")
    source = "grub default entry"
    for name, text in (("saved_entry", "grub saved entry"), ("next_entry", "grub next entry")):
        if saved.get(name) == menu.default != "" and name.encode() in script:
            source = text
    way = [names.clean(title, 120) for title in start.way]
    if menu.missed and menu.default:
        way.insert(0, f"no entry {names.show(menu.default, 80)}, so GRUB takes the first")
    return Choice(start, source, " > ".join(way) + ("; the menu waits for a key" if menu.waits else ""))


@once
def starts(root: Path) -> tuple[Start, ...]:
    """What each entry of each menu starts; nothing if a menu cannot be read."""
    every: list[Start] = []
    for directory in _with_menu(root):
        with contextlib.suppress(Undecided):
            every += (start for start in _menu(root, directory).every() if not _elsewhere(root, start))
    return tuple(every)


def saved(root: Path) -> dict[str, str]:
    """The variables that GRUB saved."""
    variables: dict[str, str] = {}
    for directory in DIRECTORIES:
        try:
            variables |= environment(_read(root, directory, "grubenv") or b"")
        except Undecided:
            continue
    return variables


def places_of(root: Path, image: str, *, anywhere: bool = False) -> Iterator[Path]:
    """Where an image that GRUB names may lie: its path begins at the top of the disk of / or of /boot, or of a subvolume there.

    anywhere: also where a file of that name is another one.
    """
    subvolumes = own_system.subvolumes(root)
    first, *parts = (image.partition(")")[2] if image.startswith("(") else image).split("/")
    for i in range(len(parts) if len(parts) <= _DEEPEST and (anywhere or not first) else 0):
        rest, above = "/".join(parts[i:]), "/".join(parts[:i])
        if rest and (anywhere or not above or "@" in above or above in subvolumes):
            yield files.inside(root, f"/{rest}")
            yield files.inside(root, f"/boot/{rest}")


def _elsewhere(root: Path, start: Start) -> str:
    """Why what GRUB loads is certainly nothing of this system's, "" if it may be."""
    disk = start.image[1:].partition(")")[0] if start.image.startswith("(") else start.disk
    if _OTHER_DISK.match(disk) or own_system.is_other_disk(root, [disk.removeprefix(UNKNOWN)]):
        return f"starts an image of another disk than /boot's: {names.clean(disk, 80)}"
    if relative := next((name for name in start.initrds if name[:1] not in "/("), ""):
        return f"names {names.show(relative, 80)} without a /, which GRUB does not find"
    if any(map(os.path.lexists, places_of(root, start.image))):
        return ""
    lies = next(filter(os.path.lexists, places_of(root, start.image, anywhere=True)), None)
    shown = names.clean(os.fspath(lies or ""), 80)
    return f"starts {names.show(start.image, 80)}, which is not there; {shown} is another file" if lies else ""


def find(root: Path, image: str) -> Path:
    """Where an image that GRUB names lies; if none of its places has it, the first."""
    places = list(places_of(root, image.replace("\0", "")))
    return next(filter(os.path.isfile, places), places[0] if places else root / "boot")


def _menu(root: Path, directory: str) -> grub_cfg.Menu:
    from knetstatd.boot import grub_cfg  # large, and not every machine has GRUB

    def missing(image: str) -> bool:
        return not any(os.path.lexists(path) for path in places_of(root, image))

    platform = "efi" if os.path.isdir(files.of_kernel(root, "/sys/firmware/efi")) else "pc"
    entries = list(_entries(root)) if b"blscfg" in (_read(root, directory, "grub.cfg") or b"") else []
    return grub_cfg.Menu(lambda name: _read(root, directory, name), platform, missing, entries)


def _entries(root: Path) -> Iterator[MenuEntry]:
    """What Fedora's command blscfg adds: the entry files, newest first by their names alone."""
    from knetstatd.boot import grub_cfg

    bls_entries = systemd_boot.entries(files.inside(root, "/boot"), present=False)
    for entry in sorted(bls_entries, key=lambda entry: names.version_key(entry.name.removesuffix(".conf")), reverse=True):
        made = grub_cfg.bls_entry(entry.title, entry.name.removesuffix(".conf"), entry.image, entry.options, entry.initrds)
        if made:
            yield made


def _read(root: Path, directory: str, name: str) -> bytes | None:
    """A file beside grub.cfg, None if there is none."""
    try:
        return files.read(files.inside(root, f"/{directory}/{name}"), _LARGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KnetstatdError) as error:
        raise Undecided(f"cannot be read: {error}") from None
