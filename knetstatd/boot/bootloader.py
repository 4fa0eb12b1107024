# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next reboot starts.

Rule 1: the answer is the loader's, not ours. It may name a kernel that has no module tree; that is said
        (`detail`), never quietly replaced by a kernel that has one.
Rule 2: what cannot be decided is Basis.UNKNOWN, with the reason; no kernel is named then. If no loader is found at all,
        the newest installed kernel is Basis.ASSUMED.
Rule 3: nothing raises.

Sources: grub_cfg and systemd_boot for the two loaders that are read, firmware for the EFI variables; systemctl(1), reboot, for
kexec and /run/nextroot.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import boot_image, firmware, grub, own_system, systemd_boot
from knetstatd.boot.grub_state import Undecided
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ESP = ("efi", "boot/efi", "boot")
_IMAGE = re.compile(r"(?:vmlinu[xz]|kernel|linux|[Ii]mage|bzImage)-(.+?)(?:\.efi)?(?:\.signed)?", re.DOTALL)
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")
_COUNTER = re.compile(r"\+([0-9]{1,6})(?:-[0-9]{1,6})?$")
_VERSION = re.compile(rb"#### LoaderInfo: systemd-boot ([0-9]{1,4})")
# Loaders that are recognised and not read, by a file of theirs; `*` stands for the ESP.
_BESIDE = {
    "boot/extlinux/extlinux.conf": "extlinux", "boot/extlinux.conf": "extlinux", "extlinux/extlinux.conf": "extlinux",
    "boot/syslinux/syslinux.cfg": "syslinux", "boot/syslinux.cfg": "syslinux", "*/EFI/syslinux/syslinux.cfg": "syslinux",
    "boot/isolinux/isolinux.cfg": "isolinux", "boot/refind_linux.conf": "rEFInd", "*/EFI/refind/refind.conf": "rEFInd",
    "*/EFI/BOOT/refind.conf": "rEFInd", "boot/boot.scr": "U-Boot", "boot/boot.scr.uimg": "U-Boot", "boot/uEnv.txt": "U-Boot",
    "boot/armbianEnv.txt": "U-Boot", "boot/firmware/config.txt": "the Raspberry Pi's firmware",
    "boot/config.txt": "the Raspberry Pi's firmware", "boot/firmware/cmdline.txt": "the Raspberry Pi's firmware",
    "boot/limine.conf": "Limine", "boot/limine.cfg": "Limine", "boot/limine/limine.conf": "Limine", "*/limine.conf": "Limine",
    "*/EFI/elilo/elilo.conf": "elilo", "*/EFI/CLOVER/config.plist": "Clover", "*/EFI/OC/config.plist": "OpenCore",
    "etc/zipl.conf": "zipl", "boot/bootmap": "zipl", "etc/yaboot.conf": "yaboot", "boot/yaboot.conf": "yaboot",
    "etc/kboot.conf": "petitboot", "boot/petitboot.conf": "petitboot",
}  # fmt: skip
# The same, of packages that leave their configuration behind: only if there is no other loader.
_LEFT_BEHIND = {
    "etc/lilo.conf": "LILO", "boot/grub/menu.lst": "GRUB 0.97", "boot/grub/grub.conf": "GRUB 0.97", "etc/elilo.conf": "elilo",
    "etc/flash-kernel/db": "flash-kernel",
}  # fmt: skip


class Basis(enum.Enum):
    """What an answer rests on. Only LOADER is proof; ASSUMED is a guess that is said, UNKNOWN names no kernel."""

    LOADER = "loader"
    ASSUMED = "assumed"
    UNKNOWN = "unknown"


class Next(NamedTuple):
    """The kernel that the next reboot starts.

    release: "" if it is not known.  source: what decided, e.g. "grub saved entry".  detail: the entry's title, and what
    was odd, or why nothing is known; may be empty.  arguments: the entry's command line.  initrds, image: where those that
    the entry names lie, or would.
    """

    release: str
    source: str
    detail: str = ""
    basis: Basis = Basis.LOADER
    arguments: str = ""
    initrds: tuple[Path, ...] = ()
    image: Path | None = None

    @property
    def why(self) -> str:
        """One phrase for people: what decided; or why it is not known."""
        return self.source if self.basis is Basis.LOADER else self.detail


class _Choice(NamedTuple):
    """What a loader starts. image: as the loader names it.  path: where the file lies, or would."""

    image: str
    source: str
    detail: str
    path: Path
    arguments: str
    initrds: tuple[Path, ...]


def next_kernel(root: Path, installed: Sequence[str]) -> Next:
    """The kernel that the machine under `root` will start at the next `systemctl reboot`. Raises nothing.

    installed: the releases that have a module tree, in any order.
    """
    try:
        choice = None if (reason := _other_way(root)) else _loader(root)
    except Undecided as error:
        reason = str(error)
    if reason:
        return _unknown(reason)
    if choice is None:
        newest = max(installed, key=names.version_key, default="")
        detail = "no boot loader was found; this is the newest installed kernel"
        return Next(newest, "newest installed", detail, basis=Basis.ASSUMED) if newest else _unknown("no kernel was found")
    if other := own_system.other(root, choice.arguments):
        why = f"its root={other} is not what this system has for /"
        return _unknown(f"the {choice.source} ({choice.detail}) may be another system's: {why}")
    named = _release(root, choice.image, installed)
    # A file may hold another kernel than its name says; /lib/modules is searched for what the kernel calls itself.
    release = boot_image.release(choice.path) or named
    if release:
        detail = choice.detail if release in installed else f"{choice.detail}; it has no modules in /lib/modules"
        if named not in ("", release):
            detail += f"; {names.show(choice.image, 80)} holds {release}"
        return Next(release, choice.source, detail, Basis.LOADER, choice.arguments, choice.initrds, choice.path)
    what = f"starts {names.show(choice.image, 80)}, whose release is unknown" if choice.image else "starts no Linux"
    return _unknown(f"the {choice.source} ({choice.detail}) {what}")


def _unknown(reason: str) -> Next:
    return Next("", "unknown", reason, basis=Basis.UNKNOWN)


# -- what comes before the loader -------------------------------------------------------------------------------------------


def _other_way(root: Path) -> str:
    """Why the next `systemctl reboot` does not ask the loader's configuration, "" if it does."""
    # systemctl-logind.c and logind-dbus.c (257); systemctl-start-special.c (252 looks at kexec alone).
    if (files.text(files.of_kernel(root, "/sys/kernel/kexec_loaded"), 16) or "").strip() == "1":
        return "a kernel is loaded for kexec, and `systemctl reboot` starts that one"
    if any(os.path.lexists(files.inside(root, f"/run/nextroot/{name}")) for name in ("etc/os-release", "usr/lib/os-release")):
        return "/run/nextroot holds a system, and `systemctl reboot` starts that one without a new kernel"
    kexec = files.text(files.inside(root, "/etc/default/kexec"), 65536) or ""
    script = files.inside(root, "/etc/init.d/kexec-load")
    if re.search(r"^[ \t]*LOAD_KEXEC=[\"']?true", kexec, re.MULTILINE) and os.path.exists(script):
        return "kexec-tools (LOAD_KEXEC in /etc/default/kexec) loads a kernel of its own at each reboot"
    if firmware.is_hidden(root):
        return "the firmware's variables (/sys/firmware/efi/efivars) may not be read here"
    chosen = firmware.variable(root, "BootNext")
    if chosen and chosen != firmware.variable(root, "BootCurrent"):
        return "the firmware is told to start another entry once (BootNext; see efibootmgr)"
    esps = [files.inside(root, f"/{place}") for place in ESP]
    if other := firmware.other_loader(root, esps, firmware.text(root, "LoaderInfo").startswith("systemd-boot")):
        return f"the firmware starts {other} first (BootOrder; see efibootmgr), and another loader started this system"
    return ""


# -- loaders ----------------------------------------------------------------------------------------------------------------


@once
def _loader(root: Path) -> _Choice | None:
    """What the loader of this machine chooses; None if there is none. Raises Undecided."""
    info = firmware.text(root, "LoaderInfo")
    if info.startswith("systemd-boot"):
        if choice := _systemd_boot(root, info):
            return choice
        raise Undecided("systemd-boot started this system, and none of its entries is found; is the ESP mounted?")
    if info and not info.startswith("GRUB"):
        raise Undecided(f"{names.clean(info, 40)} started this system, and its configuration is not read")
    unread = _recognised(root, _BESIDE) if not info else ""
    choice = None if unread else _grub(root) or _systemd_boot(root, "")
    unread = unread or ("" if choice else _recognised(root, _LEFT_BEHIND))
    if unread:
        raise Undecided(f"{unread} is here, and its configuration is not read")
    if choice is None and firmware.text(root, "StubInfo"):
        raise Undecided("the firmware itself started a unified kernel image, and its choice is not read")
    return choice


def _recognised(root: Path, known: dict[str, str]) -> str:
    """A loader that is not read, and its file; "" if there is none."""
    esps = [esp for esp in ESP if os.path.isdir(files.inside(root, f"/{esp}"))]
    places: dict[str, Path] = {}
    for pattern, name in known.items():
        for esp in esps if pattern.startswith("*") else ("",):
            path = pattern.replace("*", esp, 1)
            directory, _, file = path.rpartition("/")
            if directory not in places:
                places[directory] = files.inside(root, f"/{directory}")
            if os.path.lexists(f"{places[directory]}/{file}") and os.path.lexists(files.inside(root, f"/{path}")):
                return f"{name} (/{path})"
    return ""


def _grub(root: Path) -> _Choice | None:
    chosen = grub.choose(root)
    if chosen is None:
        return None
    esps = [files.inside(root, f"/{place}") for place in ESP]
    if firmware.may_start(root) and (stub := own_system.other_menu(root, esps, firmware.first(root, esps))):
        raise Undecided(f"GRUB on the ESP reads another menu than that in /boot: {stub} leads there")
    start = chosen.start
    image, *initrds = (grub.find(root, name) for name in (start.image, *start.initrds))
    return _Choice(start.image, chosen.source, chosen.detail, image, start.arguments, tuple(initrds))


def _systemd_boot(root: Path, info: str) -> _Choice | None:
    """systemd-boot's choice; None if it has no entries. Raises Undecided."""
    esps, boot = [files.inside(root, f"/{d}") for d in ESP], files.inside(root, "/boot")
    esp = next((place for place in esps if os.path.exists(place / "loader/loader.conf")), None)
    esp = esp or next((place for place in esps if os.path.isdir(place / "loader/entries")), boot)
    # XBOOTLDR is a partition: what lies in a directory of the root file system is read by no firmware's loader.
    apart = own_system.is_partition(root, "/boot") is not False
    if info and esp == boot and not apart:
        return None
    mounted = any(own_system.is_partition(root, f"/{place}") for place in ESP[:2])
    places = list(dict.fromkeys((esp, boot) if apart or not mounted else (esp,)))
    variables = systemd_boot.Variables(*(firmware.text(root, f"LoaderEntry{n}") for n in ("OneShot", "Default", "LastBooted")))
    try:
        chosen = systemd_boot.choose(places, variables, _version(esp, info))
    except Undecided as error:
        raise Undecided(f"systemd-boot {error}") from None
    if chosen is None:
        return None
    entry, by = chosen
    image, *initrds = (systemd_boot.find(entry, name) for name in (entry.image, *entry.initrds))
    if not boot_image.is_whole(image):
        raise Undecided(f"systemd-boot starts {names.show(entry.image, 80)}, which is empty or cut off")
    detail = names.clean(entry.title or entry.name, 120)
    return _Choice(entry.image, f"systemd-boot {by} entry", detail, image, entry.options, tuple(initrds))


def _version(esp: Path, info: str) -> int:
    """The version of the systemd-boot on the ESP, else of the one that started this system; 0 if neither is known."""
    for directory in ("EFI/systemd", "EFI/BOOT"):
        for name in files.names(esp / directory):
            with contextlib.suppress(OSError, KnetstatdError):
                if match := _VERSION.search(files.read(esp / directory / name, 1 << 20)):
                    return int(match[1])
    match = _VERSION.search(f"#### LoaderInfo: {info}".encode())
    return int(match[1]) if match else 0


# -- the release of an image ------------------------------------------------------------------------------------------------


def _release(root: Path, image: str, installed: Sequence[str], depth: int = 0) -> str:
    """The kernel release that a boot image's path stands for; "" if it stands for none."""
    directory, _, name = image.rpartition("/")
    match = _IMAGE.fullmatch(name)
    candidate = match[1] if match else name.removesuffix(".efi")
    # Gentoo writes kernel-genkernel-ARCH-K, kernel-install writes MACHINE-K.efi; boot counting adds +N-M.
    for stem in (candidate, _COUNTER.sub("", candidate)):
        for release in sorted(installed, key=len, reverse=True):
            if stem == release or stem.endswith("-" + release):
                return release
    if match and names.is_kernel(candidate):
        return candidate
    # Arch: vmlinuz-linux is the kernel whose tree says `linux` in pkgbase.
    for release in installed if match else ():
        if (files.text(files.inside(root, f"/lib/modules/{release}/pkgbase"), 256) or "").strip() == candidate:
            return release
    # kernel-install's layout: /MACHINE/K/linux.
    if not match and names.is_kernel(parent := directory.rpartition("/")[2]):
        return parent
    # /vmlinuz or /boot/vmlinuz, a symbolic link to the image.
    for place in (root, files.inside(root, "/boot")):
        try:
            target = os.readlink(place / (image.partition(")")[2] if image.startswith("(") else image).lstrip("/"))
        except (OSError, ValueError):
            continue
        if depth < 4 and (release := _release(root, target, installed, depth + 1)):
            return release
    return ""


# -- command lines ----------------------------------------------------------------------------------------------------------


@once
def command_lines(root: Path, kernel: str) -> list[str]:
    """The kernel command lines that the boot loaders' entries give to `kernel`; none if none of them can be read."""
    return [arguments for image, arguments, _ in _starts(root) if arguments and _release(root, image, [kernel]) == kernel]


@once
def _starts(root: Path) -> list[tuple[str, str, tuple[Path, ...]]]:
    """What the entries start that are this system's: image, command line, and where the initrds lie, or would."""
    starts = [
        (start.image, start.arguments, tuple(grub.find(root, name) for name in start.initrds)) for start in grub.starts(root)
    ]
    for place in ("boot", *ESP[:2]):
        with contextlib.suppress(Undecided):
            for entry in systemd_boot.entries(files.inside(root, f"/{place}"), present=False):
                starts.append((entry.image, entry.options, tuple(systemd_boot.find(entry, name) for name in entry.initrds)))
    return [start for start in starts if not own_system.other(root, start[1])]


def _started(root: Path, kernel: str) -> _Choice | None:
    """What the loader starts next, if it is `kernel`."""
    with contextlib.suppress(Undecided):
        choice = _loader(root)
        if choice is None or own_system.other(root, choice.arguments):
            return None
        if (boot_image.release(choice.path) or _release(root, choice.image, [kernel])) == kernel:
            return choice
    return None


@once
def initrds(root: Path, kernel: str) -> tuple[Path, ...] | None:
    """Where what the boot entry of `kernel` loads as its initrd lies, or would; None if no entry of it can be read.

    The entry that the next boot starts, if it is one of that kernel; else the first. A unified image has it inside (UAPI.5).
    """
    if (choice := _started(root, kernel)) is not None:
        return choice.initrds or ((choice.path,) if choice.image.endswith(".efi") else ())
    return next((paths for image, _, paths in _starts(root) if _release(root, image, [kernel]) == kernel), None)


@once
def command_line(root: Path, kernel: str) -> str:
    """What `kernel` will be told when the boot loader starts it; if no entry names it, what the running one was told.

    The next boot's entry counts, if it is one of that kernel; else the first. GRUB's variables are those that it saved.
    """
    if (said := entry_line(root, kernel)) is not None:
        return said
    return (files.text(files.of_kernel(root, "/proc/cmdline"), 65536) or "").strip()


@once
def entry_line(root: Path, kernel: str) -> str | None:
    """The same, None if no entry names it: what the running kernel was told may be the host's, of a container."""
    choice = _started(root, kernel)
    lines = [choice.arguments] if choice is not None and choice.arguments else command_lines(root, kernel)
    if not lines:
        return None
    saved = grub.saved(root)
    return _VARIABLE.sub(lambda match: saved.get(match[1], ""), lines[0])


def inputs(root: Path) -> tuple[Path, ...]:
    """The files, and the directories of files, on which command lines depend; also those that do not exist."""
    beside = ("grub.cfg", "grubenv", "custom.cfg")
    menus = [files.inside(root, f"/{directory}/{name}") for directory in grub.DIRECTORIES for name in beside]
    entries = [files.inside(root, f"/{d}/loader/entries") for d in ("boot", *ESP)]
    return (*menus, *entries, *(place / name for place in entries for name in files.names(place)))
