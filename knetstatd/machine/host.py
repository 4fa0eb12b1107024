# SPDX-License-Identifier: GPL-2.0-or-later
"""What decides about modules on a machine for all of its kernels: firmware, modprobe, boot loader, DKMS.

Rule: these are values to compare: as long as they are equal, and files have the same identity, a proof stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import bootloader
from knetstatd.core import names
from knetstatd.machine import modprobe_conf, signature_policy
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from knetstatd.machine.modprobe_conf import Rules
    from knetstatd.machine.signature_policy import Firmware


class Host(NamedTuple):
    """What decides about modules for all kernels of a machine; the same value means the same answers.

    initrds: where the digests of initrds are kept, None for nowhere.  readings: where readings of module files are, see
    verify/module_readings.  loader: the boot loader's files, on which command lines
    depend.
    insists: whether the running kernel refuses unsigned modules.
    """

    firmware: Firmware
    rules: Rules
    initrds: Path | None = None
    loader: tuple[files.Identity | None, ...] = ()
    insists: bool = False
    readings: tuple[Path, ...] = ()


class Rival(NamedTuple):
    """Another DKMS package's installed module of the same name. package: with its version.  copy: DKMS's own file of it."""

    package: str
    copy: Path
    guarded: bool


class Origin(NamedTuple):
    """What DKMS knows of an installed module.

    registered: the version that a kernel is to have, "" if DKMS does not know the package.  installed: the one it has.
    copy: DKMS's own file of it.  digest: what that file was when we published it.
    changed: when the source last was, in seconds since the epoch; infinite if the module is of another source.
    rivals: what other packages have installed under its name.  left: no package is meant for this kernel.
    """

    registered: str = ""
    installed: str = ""
    copy: Path | None = None
    changed: float = 0.0
    rivals: tuple[Rival, ...] = ()
    left: bool = False
    digest: files.Digest | None = None

    @property
    def copies(self) -> tuple[Path, ...]:
        """The files of DKMS that the installed one is compared with."""
        return (*((self.copy,) if self.copy is not None else ()), *(rival.copy for rival in self.rivals))


def facts(root: Path, initrds: Path | None = None, kernel: str = "", readings: tuple[Path, ...] = ()) -> Host:
    """Reads the machine under `root`. initrds, readings: see Host.  kernel: of which modules are asked, "" for several."""
    loader = tuple(map(files.identity, bootloader.inputs(root)))
    insists = signature_policy.running_insists(root)
    return Host(signature_policy.firmware(root, kernel), modprobe_conf.rules(root), initrds, loader, insists, readings)


def of_kernel(root: Path, machine: Host, kernel: str) -> Host:
    """The machine with the certificate that modules of this kernel are signed for, if each kernel has its own."""
    if signature_policy.signing_pair(root, kernel)[1] == machine.firmware.own_file:
        return machine
    return machine._replace(firmware=signature_policy.firmware(root, kernel))


def copy_of(root: Path, module: str, directory: Path, built: Sequence[str]) -> Path | None:
    """Of the files that DKMS built, the one that is this module."""
    same = (name for name in built if names.canonical(names.module_of(name)) == names.canonical(module))
    return next((files.followed(root, directory / name) for name in same), None)


def written(copy: Path) -> float:
    """When a file of DKMS's got its contents, in seconds since the epoch; 0 if it is not there."""
    seen = files.identity(copy)
    return seen.mtime_ns / 1e9 if seen else 0.0
