# SPDX-License-Identifier: GPL-2.0-or-later
"""Does the kernel boot with an initrd that is whole, and does that hold the right copy of the module, if it is to hold one?

Rule 1: no new build of the module changes the answer (model.ELSEWHERE): a new initrd does.
Rule 2: what cannot be read is unknown, and unknown is not ready: the copy in the initrd is the one that is loaded at boot.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import bootloader, kernel_parameters
from knetstatd.core import names
from knetstatd.core.errors import Damaged, KnetstatdError, LibraryMissing
from knetstatd.core.model import Check, Result
from knetstatd.formats import initrd, module_file
from knetstatd.machine import initramfs, kmod
from knetstatd.machine.module_needs import Sure
from knetstatd.system import files
from knetstatd.verify import compression_check, initrd_digests, module_readings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.machine.host import Host
    from knetstatd.verify.target_kernel import Target

NAME = "initrd"
# What takes a program in an initrd to be found: early_lookup_bdev() of block/early-lookup.c knows PARTUUID, PARTLABEL and /dev.
_ALONE_NO = ("UUID=", "LABEL=", "ZFS=", "/dev/disk/", "/dev/mapper/")
_ENTRY = "Run: update-grub; or add an initrd to the boot entry"
# Seconds: so long may an initrd be in the making (mkinitramfs takes 10 to 60), and so be younger than what it does not hold.
_MAKING = 120


class _Disk(NamedTuple):
    """What a kernel boots with. paths: the files of its initrd; none of them need be there."""

    root: Path
    kernel: str
    paths: tuple[Path, ...]

    def fail(self, expected: str, what: str, reason: str) -> Check:
        return Check(NAME, Result.FAIL, expected, what, reason, initramfs.fix(self.root, self.kernel))

    def unknown(self, why: str, fix: str = "") -> Check:
        where = os.fspath(self.paths[-1])
        return Check(NAME, Result.UNKNOWN, "the installed module", where, f"What the initrd holds is not known: {why}", fix)


def check(root: Path, facts: Target, host: Host, name: str, file: Path, known: files.Digest | None) -> Check:
    """Whether the initrd that `facts.kernel` boots with is whole, and its copy of the module, if any, is the installed one.

    name: the module's, as its file has it.  file: the installed one.  known: what it is if nobody has changed it.
    """
    kernel, files_of_it = facts.kernel, initramfs.initrds(root, facts.kernel)
    disk = _Disk(root, kernel, files_of_it.paths)
    if not disk.paths:
        if files_of_it.named and (device := _root_device(root, kernel)).startswith(_ALONE_NO):
            reason = f"The boot entry loads no initrd, and a kernel without one finds no root={names.clean(device, 80)}"
            return Check(NAME, Result.UNKNOWN, "an initrd", "none", f"{reason}, unless its image has one inside", _ENTRY)
        if files_of_it.named or not initramfs.is_made_here(root):
            return Check(NAME, Result.NOT_APPLICABLE, reason="The kernel has no initrd")
        reason = f"{kernel} has no initrd in /boot, and will find no root file system"
        return disk.fail("an initrd", "none", reason)
    kinds = tuple(kind for kind, option in initrd.OPTIONS.items() if not facts.configured or option in facts.options)
    try:
        inside = initrd_digests.modules(disk.paths, kernel, kinds, host.initrds)
    except FileNotFoundError as e:
        if any(os.fspath(hidden) == e.filename for hidden in files_of_it.hidden):
            return disk.unknown(f"this user may not look at {e.filename}")
        reason = f"The boot entry loads {names.clean(str(e.filename))}, which does not exist"
        return disk.fail("an initrd", "no such file", reason)
    except OSError as e:
        return disk.unknown(f"it cannot be read: {e.strerror}")
    except LibraryMissing as e:
        return disk.unknown(f"it {e}", f"Run: apt install {e.package}")
    except Damaged as e:
        return disk.fail("a whole initrd", os.fspath(disk.paths[-1]), f"The initrd {e}")
    if not inside.init:
        return disk.fail("a whole initrd", "no /init", "The initrd has no program to start: its end is missing")
    if inside.foreign:
        reason = f"{disk.paths[-1]} is another kernel's: it has no module of {kernel}, and the root file system may need some"
        return disk.fail(f"an initrd of {kernel}", f"modules of {names.clean(inside.foreign)} alone", reason)
    copy = inside.copies.get(name)
    shipped = facts.tables.shipped(name)
    if copy is None and inside.has_own(name) and shipped and file not in shipped:
        reason = f"{disk.paths[-1]} has the kernel's own module of that name, and that one is loaded at boot"
        return disk.fail(os.fspath(file), "the kernel's own", reason)
    if copy is None:
        return _absent(disk, facts, host, inside, name, file)
    if not copy:
        fix = initramfs.fix(root, kernel)
        return disk.unknown("it has a copy, which cannot be compared: it cannot be read", fix)
    try:
        same = known is not None and copy.startswith(f"{known.contents} ")
        same = same or copy.startswith(f"{module_readings.read(file, host.readings).digest.contents} ")
        if not same:  # a copy that was stripped is another file
            with module_file.opened(file) as opened:
                same = initrd.is_copy(copy, initrd.mark_of(opened.source, opened.end))
    except (OSError, KnetstatdError) as e:
        return disk.unknown(f"the installed module cannot be compared with its copy: {e}")
    if not same:
        reason = f"{disk.paths[-1]} has another copy, and that one is loaded at boot"
        return disk.fail(os.fspath(file), f"SHA-256 {copy[:16]}", reason)
    leaves = compression_check.kernel_unpacks(facts) != "" and any(tool.asks_kernel for tool in kmod.installed(root))
    if name in inside.refused and leaves:
        return disk.fail("a copy that the kernel unpacks", "", f"The kernel refuses its copy: {inside.refused[name]}")
    return Check(NAME, Result.PASS, found="the same copy in it")


def _root_device(root: Path, kernel: str) -> str:
    """What the boot entry names as the root file system, "" for nothing."""
    words = kernel_parameters.own_parameters(bootloader.entry_line(root, kernel) or "")
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("root=")), "")


def _absent(disk: _Disk, facts: Target, host: Host, inside: initrd.Inside, name: str, file: Path) -> Check:
    """The answer if there is no copy in the initrd: is there to be one?"""
    holds = lambda other: other in inside.copies or inside.has_own(other)  # noqa: E731
    wanted = initramfs.wanted(disk.root, disk.kernel, facts.tables, host.rules, name, file, holds)
    if wanted is None or (wanted.sure is not Sure.CERTAIN and not _is_older(disk.paths, file)):
        return Check(NAME, Result.PASS, found="no copy in it")
    where = names.clean(wanted.where, 200)
    if wanted.sure is Sure.POSSIBLE:
        why = f"it has no copy, and was made before this module; a new one may hold it: {where}"
        return disk.unknown(why, initramfs.fix(disk.root, disk.kernel))
    if not wanted.configured:
        reason = f"The initrd lacks this module, and nothing would put it into a new one: {where}"
        return Check(NAME, Result.FAIL, "a copy in it", "none", reason, initramfs.fix(disk.root, disk.kernel, name))
    return disk.fail("a copy in it", "none", f"The initrd lacks this module, which a new one would hold: {where}")


def _is_older(initrds: Sequence[Path], file: Path) -> bool:
    """Whether the initrd may have been made before the module was there."""
    made = [seen.mtime_ns for path in initrds if (seen := files.identity(path))]
    there = files.identity(file)
    return there is None or min(made, default=0) < there.ctime_ns + _MAKING * 10**9
