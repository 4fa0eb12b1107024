# SPDX-License-Identifier: GPL-2.0-or-later
"""Every path of ours, below the directories that systemd gives our units (systemd.exec(5), StateDirectory= and the like).

/var/lib/knetstatd/kernels/KERNEL/PACKAGE.json     the failed attempts for a package on a kernel
                                  PACKAGE.log      the log of its last failed build
                   stage/KERNEL/PACKAGE/           a package's modules, compiled and proven, not published yet
                         .publish.*/               a publication at work
                   rehearsals/KERNEL/PACKAGE.json  the kernel's answer to a rehearsal
                   digests/KERNEL/PACKAGE.json     what a package's modules were when they were published
                   sources/KERNEL/PACKAGE.json     of which source a package's modules were compiled
                   room/PACKAGE.json               what the last build of it took of the disk
                   plain/PACKAGE.json              how a build of it by plain dkms came out
                   initrd/KERNEL.json              the digests of the modules in a kernel's initrd
                   guard/packages.json             the packages that the daemon guarded at its last look
/run/knetstatd/guard.lock                          held by the daemon; this directory is its own
               status.json, motd                   the verdicts, for programs and for logins
               readings/FILE-HASH.json             what the daemon has read of large module files, if root has not
               seen/PACKAGE                        when the daemon first saw that somebody else had loaded the modules
/run/knetstatd-build/builder.lock                  held by a builder; this directory is root's
               loads/PACKAGE, refused/PACKAGE      the loadings of this boot, and the files that its kernel has refused
               readings/FILE-HASH.json             what was read of large module files, and of boot images
               next.json                           which kernel root has found the next boot to start
               keys/KERNEL/                        copies of what signs, while the builder is at work; root's alone
               compile/order.json                  the order for the unit that compiles
                       osrelease, version          what it sees in /proc in the place of the running kernel's
               rehearsal.json, rehearsal.ko        the order for the unit that rehearses, and a file that it is about
/var/cache/private/knetstatd-compile/result/       the modules that the unit that compiles has made, and outcome.json
                   knetstatd-rehearse/answer.json  the answer of the unit that rehearses
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Below the cache directory of the unit that compiles, and of the one that rehearses.
RESULT, OUTCOME, ANSWER = "result", "outcome.json", "answer.json"
PUBLISHING = ".publish."  # how the working directories of publications begin


class Places(NamedTuple):
    """Where our files lie. caches: the directory of the units' private caches. Kernels and packages are validated names."""

    state: Path
    runtime: Path
    caches: Path

    # -- kept over a reboot -----------------------------------------------------------------------------------------------

    def attempt(self, kernel: str, package: str) -> Path:
        """The failed attempts for one package and kernel."""
        return self.state / "kernels" / kernel / f"{package}.json"

    def log(self, kernel: str, package: str) -> Path:
        """The log of the last failed build of one package for one kernel."""
        return self.state / "kernels" / kernel / f"{package}.log"

    @property
    def stages(self) -> Path:
        """The directory of all staged artefacts, and of publications at work."""
        return self.state / "stage"

    def stage(self, kernel: str, package: str) -> Path:
        """The staged artefact of one package for one kernel."""
        return self.stages / kernel / package

    def rehearsal(self, kernel: str, package: str) -> Path:
        """The answer to a rehearsal of one package on one kernel."""
        return self.state / "rehearsals" / kernel / f"{package}.json"

    def digests(self, kernel: str, package: str) -> Path:
        """What the modules of one package for one kernel were when they were published."""
        return self.state / "digests" / kernel / f"{package}.json"

    def sources(self, kernel: str, package: str) -> Path:
        """Of which source the modules of one package for one kernel were compiled."""
        return self.state / "sources" / kernel / f"{package}.json"

    def room(self, package: str) -> Path:
        """What the last build of one package took of the disk."""
        return self.state / "room" / f"{package}.json"

    def plain(self, package: str) -> Path:
        """How a build of one package by plain dkms, for a kernel that did not run, came out."""
        return self.state / "plain" / f"{package}.json"

    @property
    def guarded(self) -> Path:
        """The packages that the daemon guarded at its last look."""
        return self.state / "guard" / "packages.json"

    @property
    def initrds(self) -> Path:
        """The directory with the digests of the modules in initrds, a file KERNEL.json for each kernel."""
        return self.state / "initrd"

    def of_kernels(self) -> Iterator[tuple[str, Path]]:
        """All that is kept for kernels: the kernel, and a file or a directory."""
        below = (self.state / name for name in ("kernels", "rehearsals", "digests", "sources"))
        for parent in (*below, self.stages, self.initrds):
            for name in files.names(parent):
                if names.is_kernel(kernel := name.removesuffix(".json") if parent == self.initrds else name):
                    yield kernel, parent / name

    def of_packages(self) -> Iterator[tuple[str, Path]]:
        """All that is kept for packages: the package, and a file or a directory."""
        for _, parent in self.of_kernels():
            if parent.parent != self.initrds:
                for name in files.names(parent):
                    if names.is_package(package := name.removesuffix(".json").removesuffix(".log")):
                        yield package, parent / name
        for parent in (self.state / "plain", self.state / "room"):
            for name in files.names(parent):
                if names.is_package(package := name.removesuffix(".json")):
                    yield package, parent / name
        for parent in (self.builders / "loads", self.builders / "refused"):
            yield from ((name, parent / name) for name in files.names(parent) if names.is_package(name))

    def watched(self) -> Iterator[Path]:
        """The directories of what a verdict may rest on: somebody who deletes it wants another look."""
        for parent in (self.state / name for name in ("kernels", "rehearsals", "digests")):
            yield parent
            yield from (parent / kernel for kernel in files.names(parent))

    # -- of this boot -----------------------------------------------------------------------------------------------------

    @property
    def builders(self) -> Path:
        """The builders' directory: root's, while the daemon, which has another user, writes in `runtime`."""
        return self.runtime.with_name(f"{self.runtime.name}-build")

    @property
    def build_lock(self) -> Path:
        """Held while a builder is at work. Not its name of before: that file could be opened, and held, by every user."""
        return self.builders / "builder.lock"

    @property
    def daemon_lock(self) -> Path:
        """Held while a daemon runs."""
        return self.runtime / "guard.lock"

    @property
    def status(self) -> Path:
        """The verdicts, for programs."""
        return self.runtime / "status.json"

    @property
    def motd(self) -> Path:
        """The worst verdict, for logins."""
        return self.runtime / "motd"

    def keys(self, kernel: str) -> Path:
        """Copies of the key and the certificate that sign for a kernel, while its builder is at work."""
        return self.builders / "keys" / kernel

    def loads(self, package: str) -> Path:
        """When the package's modules were loaded in this boot."""
        return self.builders / "loads" / package

    def seen(self, package: str) -> Path:
        """When the daemon first saw that somebody else had loaded the package's modules."""
        return self.runtime / "seen" / package

    def refused(self, package: str) -> Path:
        """Which of the package's module files the running kernel has refused."""
        return self.builders / "refused" / package

    @property
    def compilation(self) -> Path:
        """What the unit that compiles is to do, and what it is to see of the kernel that it compiles for: a directory."""
        return self.builders / "compile"

    @property
    def order(self) -> Path:
        """What the unit that rehearses is to do."""
        return self.builders / "rehearsal.json"

    @property
    def rehearsed_file(self) -> Path:
        """A copy of the module file that is rehearsed, for a file that lies where the unit may not look."""
        return self.builders / "rehearsal.ko"

    @property
    def next_boot(self) -> Path:
        """What root has found the next boot to start."""
        return self.builders / "next.json"

    @property
    def readings(self) -> tuple[Path, ...]:
        """Where readings of large module files are: root's, and, for another user, his own; who asks writes to the last."""
        own = () if os.geteuid() == 0 else (self.runtime / "readings",)
        return (self.builders / "readings", *own)

    # -- the units' own ---------------------------------------------------------------------------------------------------

    @property
    def compile_cache(self) -> Path:
        """Where the unit that compiles may write."""
        return self.caches / "knetstatd-compile"

    @property
    def rehearse_cache(self) -> Path:
        """Where the unit that rehearses may write."""
        return self.caches / "knetstatd-rehearse"


def places(root: Path, *, runs: bool = True) -> Places:
    """Our places on the machine under `root`. If it runs, systemd says in the environment where two of the directories are."""
    said = os.environ if runs else {}
    state = said.get("STATE_DIRECTORY", "/var/lib/knetstatd")
    runtime = said.get("RUNTIME_DIRECTORY", "/run/knetstatd")
    return Places(files.inside(root, state), files.inside(root, runtime), files.inside(root, "/var/cache/private"))
