# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels whose package a failed hook left half-configured: when it can be finished, and who is in the way.

Rule: a package is configured when the guarded modules of its kernel are good, or an administrator has said that dkms is not to
build them for it; never before. What would fail its hook again is kept away from it.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.model import Action, Artefact, KernelState
from knetstatd.diagnosis import build_log, compare_kernels
from knetstatd.dkms import dkms_tree
from knetstatd.machine import dpkg_status
from knetstatd.repair.repairs import Advise, Repair, Run, Write
from knetstatd.state import attempts
from knetstatd.system import files
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from knetstatd.verdict.observe import Machine, Seen


def seen(machine: Machine, kernel: str) -> list[Seen]:
    """The guarded packages on a kernel, each looked at anew."""
    look = machine.look(kernel)
    return [machine.observe(look, package, own=True) for package in machine.packages()]


def find(machine: Machine, kernel: str | None) -> Iterator[Repair]:
    """Kernels that a failed hook left half-configured, where the guarded modules are good by now."""
    for release in machine.kernels.kernels if kernel is None else (kernel,):
        left = machine.unfinished(release)
        if not left or any(p.state not in dpkg_status.CONFIGURABLE for p in left):
            continue
        bootable = machine.state_of(release) is KernelState.BOOTABLE and release in machine.wanted()
        good = (Artefact.GOOD, Artefact.OTHER)
        bad = [s for s in seen(machine, release) if s.observation.installed not in good and not judge.lacks_initrd(s)]
        if bootable and (waits := [s for s in bad if not _left_out(machine, release, s.observation.package)]):
            if stuck := [s for s in waits if machine.plan(s, attempts.now()).action is Action.GIVE_UP]:
                yield _undecided(machine, release, left, stuck)
            continue
        acts: list[Write | Run] = []
        said = "; ".join(f"{p.name} is {p.state}" for p in left)
        failing = list(culprits(machine, release))
        for package, cause in failing:
            version = package.highest.version
            path = _override(package, release)
            if not os.path.lexists(machine.root / path[1:]):
                text = (
                    "# Written by knetstatctl repair: this module's build fails the installation of this kernel.\n"
                    f'# {cause.reason}\n# Delete this file when it compiles.\nAUTOINSTALL=""\n'
                )
                acts.append(Write(path, text))
                said += f"; its hook builds {package.name} {version}, and that fails: {cause.reason}"
        acts.append(Run(("dpkg", "--configure", *(p.name for p in left)), hold=bool(failing or bad)))
        why = f"{said}; until it is finished, the kernel may have no initrd, and every run of apt fails"
        yield Repair("configure", release, f"finish the installation of kernel {release}", why, tuple(acts))


def _left_out(machine: Machine, kernel: str, package: str) -> bool:
    """Whether an administrator has kept dkms from building a package for a kernel, in the file that `_undecided` names."""
    known = dkms_tree.package(machine.root, package)
    if known is None or not os.path.lexists(machine.root / _override(known, kernel)[1:]):
        return False
    return not dkms_tree.conf(machine.root, package, known.highest, kernel).autoinstall


def _override(package: dkms_tree.Package, kernel: str) -> str:
    return f"/etc/dkms/{package.name}-{package.highest.version}-{kernel}.conf"


def _undecided(machine: Machine, kernel: str, left: Sequence[dpkg_status.Unfinished], stuck: Sequence[Seen]) -> Repair:
    """Guarded packages that fail in dkms's hook, for good: which of three ways out is right, only a person can say."""
    acts = []
    for seen in stuck:
        o = seen.observation
        cause = o.attempt.reason if o.attempt else seen.source_reason or seen.headers.reason or "it has no module here"
        title = f"{o.package} {o.version}".strip()
        acts.append(Advise(f"{title}: {names.clean(cause)}. Decide for it:"))
        acts.append(Advise(f"- install a version that supports {kernel}, then: knetstatctl build {kernel}"))
        if (known := dkms_tree.package(machine.root, o.package)) is None:
            continue
        override = _override(known, kernel)
        without = f"echo 'AUTOINSTALL=\"\"' >{override} && knetstatctl repair {kernel}"
        acts.append(Advise(f"- or do without it on {kernel}: {without}"))
        conf = f"/usr/src/{o.package}-{o.version}/dkms.conf"
        owner = dpkg_status.owners(machine.root, [conf]).get(conf, "")
        remove = f"apt-get remove {owner}" if owner else f"dkms remove {o.package}/{o.version} --all"
        acts.append(Advise(f"- or remove it from this machine: {remove} && knetstatctl repair {kernel}"))
    said = "; ".join(f"{p.name} is {p.state}" for p in left)
    who = ", ".join(s.observation.package for s in stuck)
    why = f"{said}: its hook makes dkms build {who}, and that fails; until it is finished, every run of apt fails"
    return Repair("configure", kernel, f"finish the installation of kernel {kernel}: {who} is in the way", why, tuple(acts))


def culprits(machine: Machine, kernel: str) -> Iterator[tuple[dkms_tree.Package, build_log.Cause]]:
    """The modules whose build by the distribution's hook has failed for a kernel, and why: dkms's own log says it."""
    if not dkms_tree.hook_present(machine.root):
        return
    for package in dkms_tree.registered(machine.root).packages.values():
        version = package.highest
        path = dkms_tree.tree(machine.root) / package.name / version.version / "build/make.log"
        log = files.text(path) or ""
        if version.broken or package.installed(kernel) or f" for kernel {kernel} (" not in log[:400]:
            continue
        conf = dkms_tree.conf(machine.root, package.name, version, kernel)
        if conf.autoinstall and _newest(version.source) < os.stat(path).st_mtime:
            cause = build_log.classify(log, "", 10)
            yield package, compare_kernels.refine(cause, machine.root, kernel, version.source)


def _newest(source: Path) -> float:
    """When the newest file of a source tree was changed; a log older than that says nothing about it."""
    below = (os.path.join(where, name) for where, _, there in os.walk(source) for name in there)
    return max((os.lstat(path).st_mtime for path in itertools.islice(below, 10000) if os.path.lexists(path)), default=0.0)
