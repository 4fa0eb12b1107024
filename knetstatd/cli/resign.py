# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl resign: DKMS's own files of all that it has installed are signed again, and published as every build is.

Rules:

1. Nothing is compiled. A package whose modules are not good as they are, apart from signature and key, is left to a build.
2. If a package cannot be signed, what is installed stays as it is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.build import publish
from knetstatd.build import sign as signing
from knetstatd.build.compile import Job
from knetstatd.cli import subjects, terminal, verdicts
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.events import Event
from knetstatd.core.exits import Exit
from knetstatd.core.model import ELSEWHERE
from knetstatd.dkms import dkms_tree
from knetstatd.machine import busy
from knetstatd.state import staged
from knetstatd.system import locks, process
from knetstatd.system.journal import Journal
from knetstatd.system.progress import Progress
from knetstatd.verdict import judge

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from knetstatd.core.model import Proof
    from knetstatd.verdict.observe import Machine

_SIGNED = ELSEWHERE | {"signature"}


class Signed(NamedTuple):
    """How one package ended. reason: why it is not signed again, "" if it is."""

    package: str
    version: str
    kernel: str
    reason: str


def verb(arguments: argparse.Namespace) -> Exit:
    """Signs again what DKMS has installed, after a change of the key."""
    subjects.only_here(arguments, "signs and installs on the machine that runs")
    if os.geteuid() != 0:
        raise KnetstatdError("signing needs root", fix=f"Run: sudo knetstatctl resign {arguments.kernel}")
    machine = subjects.machine(arguments)
    kernels = subjects.kernels(machine, arguments.kernel)
    if not kernels:
        raise UsageError(verdicts.summary(machine, arguments.kernel, []))
    done = []
    process.adopt_orphans()
    for one in resign(machine, Journal(quiet="JOURNAL_STREAM" in os.environ), Progress(shown=not arguments.json), kernels):
        done.append(one)
        if not arguments.json:
            print(f"{one.package} {one.version} for {one.kernel}: {one.reason or 'signed again'}")
    if arguments.json:
        terminal.show_document({"schema": judge.SCHEMA, "packages": [one._asdict() for one in done]})
    elif not done:
        print(f"DKMS has installed nothing for {', '.join(kernels)}.")
    return Exit.FAILED if any(one.reason for one in done) else Exit.OK


def resign(machine: Machine, journal: Journal, progress: Progress, kernels: Sequence[str]) -> Iterator[Signed]:
    """Signs again all that DKMS has installed for these kernels, guarded or not; yields each package as it ends.

    Raises KnetstatdError if somebody else is at work on packages or in DKMS.
    """
    with locks.locked(machine.places.build_lock, 3600.0) as lock:
        for kernel in kernels:
            for name in machine.in_order(kernel, sorted(machine.registered())):
                working, other = machine.refresh(), busy.foreign_dkms(machine.root, os.getpid())
                if working := working or (other.shown if other else ""):
                    raise KnetstatdError(f"{working} is at work", fix="Try again when it has ended")
                package = dkms_tree.package(machine.root, name)
                installed = package.installed(kernel) if package is not None else None
                if package is None or installed is None:
                    continue
                version = installed[0].version
                progress.phase(f"Signing {name} {version} for {kernel}")
                reason = _one(machine, kernel, package, installed[0], progress, lock)
                if not reason:
                    journal.log(
                        Event.PUBLISHED, f"{name} {version} for {kernel}: signed again and verified from the disk",
                        package=name, version=version, kernel=kernel,
                    )  # fmt: skip
                yield Signed(name, version, kernel, reason)
        progress.end()


def _one(
    machine: Machine, kernel: str, package: dkms_tree.Package, version: dkms_tree.Version, progress: Progress, lock: int
) -> str:
    """Signs one package's modules again; returns why it did not."""
    look = machine.look(kernel)
    if version != package.wanted(kernel):
        return f"version {package.highest.version} is registered, and another is installed; run knetstatctl build {kernel}"
    mark = machine.fingerprint(kernel, package.name, version.source, look.headers.path)
    if worst := next((proof for proof in machine.prove_all(look, package.name) if not _is_good(proof)), None):
        check = worst.first(_SIGNED)
        return f"it is not good as it is: {(check.reason or check.found) if check else 'it is not of the registered source'}"
    key = signing.key_for(machine.root, machine.places, kernel, look.headers.path) if look.headers.path is not None else None
    if key is None or look.headers.path is None:
        return f"nothing signs for this kernel here{f': {look.headers.reason}' if look.headers.reason else ''}"
    artefact = staged.built(dkms_tree.tree(machine.root), kernel, package.name, version.version)
    if artefact is None:
        return "DKMS has no build of it"
    timeout = machine.config.publish_timeout_seconds
    job = Job(machine.root, machine.places, kernel, package.name, version.version, version.source, (), mark, timeout)

    def prove() -> tuple[Proof, ...]:
        machine.refresh()
        return machine.prove_all(machine.look(kernel), package.name)

    try:
        with process.undisturbed():
            done = publish.publish(job, artefact, look.headers.path, prove, [lock], progress.tick, "nothing was changed")
    except (OSError, KnetstatdError) as e:
        return str(e)
    return "" if done is not None else f"its source was edited meanwhile; run knetstatctl build {kernel}"


def _is_good(proof: Proof) -> bool:
    return proof.holds(_SIGNED) and proof.is_current
