# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiling a package in a private DKMS tree.

Rules:

1. Nothing is written outside the working directory: not /var/lib/dkms, not /lib/modules, no signing key is read or made.
2. A build that asks for the running kernel gets the target: half of all broken packages compile for the running one. The
   program uname answers it, as do /proc/version, /proc/sys/kernel/osrelease and the names in /lib/modules. uname(2) cannot
   be made to (namespaces(7) has none for it), so the running kernel's name in /lib/modules leads to the target's directory.
   dkms is not misled where it matters: it compares the two only when it installs.
3. dkms's exit code decides nothing. The files do.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.build import room
from knetstatd.core.errors import KnetstatdError
from knetstatd.dkms import dkms_tree, stored
from knetstatd.machine import kernels
from knetstatd.state import staged
from knetstatd.system import files, process

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from knetstatd.state.paths import Places

LOG_LIMIT = 1 << 20

_UNAME = """#!/bin/sh
# Answers the kernel that the module is built for, where the real one would answer the kernel that runs.
real=$({real} -r)
answer=$({real} "$@") || exit
case $answer in
*"$real"*) printf '%s\\n' "${{answer%%"$real"*}}{kernel}${{answer#*"$real"}}" ;;
*) printf '%s\\n' "$answer" ;;
esac
"""

# dkms packs what it has built, without a signature. Publishing unpacks that, signs it, and packs it again: to pack
# twice would cost more than a compilation. So here it is stored as it is. Who else calls such a program gets what he asks for.
_PACKER = """#!/bin/sh
# Puts the module that dkms has built into a packed file without packing it: it is signed and packed later.
for last; do :; done
case $last in {build}/*.ko) ;; *) exec {real} "$@" ;; esac
for word; do
    case $word in
    "$last" | -f | -9f | -q | -T0 | -20 | -n | --rm | --ultra | --check=* | --lzma2=*) ;;
    *) exec {real} "$@" ;;
    esac
done
exec {python} -I {stored} {suffix} "$last"
"""
_SUFFIXES = {"xz": "xz", "gzip": "gz", "zstd": "zst"}

# What the mount options of knetstatd-compile@.service do, for a build without that.
_VIEW = """
root=$1 kernel=$2 running=$3 seen=$4; shift 4
modules=$root/lib/modules
mount --bind "$seen/osrelease" "$root/proc/sys/kernel/osrelease" &&
mount --bind "$seen/version" "$root/proc/version" &&
mount --rbind "$modules/$kernel" "$seen/kernel" &&
mount -t tmpfs -o mode=755 knetstatd "$modules" &&
mkdir -p "$modules/$kernel" "$modules/$running" &&
mount --rbind "$seen/kernel" "$modules/$kernel" &&
mount --rbind "$seen/kernel" "$modules/$running" &&
exec "$@"
"""


class Job(NamedTuple):
    """One package for one kernel. root: the machine's.  places: of our own files on it.

    source: the package's source directory.  passed: the make variables that dkms.conf sets.
    lacking: of the packages that it is built after, those that the kernel does not have.
    """

    root: Path
    places: Places
    kernel: str
    package: str
    version: str
    source: Path
    passed: Collection[str]
    fingerprint: str
    timeout: float
    lacking: tuple[str, ...] = ()


class Compiled(NamedTuple):
    """How a compilation ended. staged: what it made, None if it made nothing.  output: dkms's.  log: make's.

    code: dkms's exit status, -N if signal N killed it.  taken: the bytes that it was seen to take of the disk.
    """

    staged: staged.Staged | None
    code: int
    timed_out: bool
    output: str
    log: str
    taken: int = 0


def compile_here(job: Job, work: Path, tick: Callable[[], None] | None) -> Compiled:
    """Compiles in `work`, an empty directory, as a child of this process; tick is called meanwhile.

    Raises BuildError if it takes more room than it may.
    """
    space, peak = room.Room((work,), (Path("/tmp"), Path("/var/tmp"))), room.Peak(work)

    def look() -> None:
        space.check()
        peak.look()
        if tick is not None:
            tick()

    tree, temporary, programs = work / "tree", work / "tmp", work / "bin"
    registered = tree / job.package / job.version
    registered.mkdir(parents=True)
    (registered / "source").symlink_to(job.source)
    others = list(_installed_beside(job, tree))
    temporary.mkdir()
    programs.mkdir()
    real = process.which(job.root, "uname") or "/bin/uname"
    (programs / "uname").write_text(_UNAME.format(real=real, kernel=job.kernel))
    for name, suffix in _SUFFIXES.items():
        if packer := process.which(job.root, name):
            words = (packer, os.path.realpath(registered / "build"), sys.executable, stored.__file__)
            real, build, python, program = map(shlex.quote, words)
            text = _PACKER.format(real=real, build=build, python=python, stored=program, suffix=suffix)
            (programs / name).write_text(text)
    for name in files.names(programs):
        (programs / name).chmod(0o755)
    # No program is called like this: dkms then leaves the module unsigned, and makes no key. Publishing signs.
    unsigned = {"sign_file": os.fspath(work / "no-signing-here")}
    done = process.run(
        [*_viewed(job, work / "seen"), "dkms", "build", "-m", job.package, "-v", job.version, "-k", job.kernel,
         "--dkmstree", os.path.realpath(tree)],
        timeout=job.timeout, env=process.environment(temporary, [os.fspath(programs)], unsigned, root=job.root),
        cwd=work, tick=look, pace=room.PACE,
    )  # fmt: skip
    for other in others:
        shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(programs)
    shutil.rmtree(work / "seen")  # where that kernel's directory was mounted, in the build's own name space
    shutil.rmtree(temporary, ignore_errors=True)
    artefact = staged.built(tree, job.kernel, job.package, job.version) if not done.timed_out else None
    path = registered / "build" / "make.log"
    path = artefact.log if artefact is not None and not path.exists() else path
    log = (files.text(path, LOG_LIMIT // 2) or "") + _end_of(path, LOG_LIMIT // 2)
    return Compiled(artefact, done.code, done.timed_out, done.text, log, peak.bytes)


def show_kernel(job: Job, place: Path) -> None:
    """Leaves in a directory what a build is to see in the place of /proc/sys/kernel/osrelease and of /proc/version."""
    version = files.text(files.inside(job.root, "/proc/version")) or f"Linux version {kernels.running()} \n"
    # A kernel says "Linux version RELEASE (BUILDER) (COMPILER) NUMBER TIME" (init/version-timestamp.c).
    words = version.split(" ", 3)
    words[2:3] = [job.kernel]
    files.write(place / "osrelease", f"{job.kernel}\n".encode(), durable=False)
    files.write(place / "version", " ".join(words).encode(), durable=False)


def _viewed(job: Job, place: Path) -> list[str]:
    """What starts a program so that it sees the kernel of the job; nothing if that cannot be done here.

    It cannot without CAP_SYS_ADMIN. The unit that compiles has none, and sees that kernel already.
    """
    (place / "kernel").mkdir(parents=True)
    show_kernel(job, place)
    shown = ["" if job.root == files.HERE else os.fspath(job.root), job.kernel, kernels.running(), os.fspath(place)]
    argv = ["unshare", "--mount", "sh", "-c", _VIEW, "sh", *shown]
    try:
        works = process.run([*argv, "true"], timeout=10, env=process.environment(root=job.root)).code == 0
    except KnetstatdError:
        works = False
    return argv if works else []


def _installed_beside(job: Job, tree: Path) -> Iterator[Path]:
    """Links what DKMS has installed for the kernel into a private tree: dkms 3.2 insists on what BUILD_DEPENDS names."""
    for package in dkms_tree.registered(job.root).packages.values():
        installed = package.installed(job.kernel)
        if package.name == job.package or installed is None:
            continue
        version, build = installed
        home, place = tree / package.name, Path(version.version, build.kernel, build.arch)
        (home / place).mkdir(parents=True)
        for name in files.names(build.directory):
            (home / place / name).symlink_to(build.directory / name)
        (home / version.version / "source").symlink_to(version.source)
        (home / f"kernel-{build.kernel}-{build.arch}").symlink_to(place)
        yield home


def _end_of(path: Path, limit: int) -> str:
    """The end of a file, without its first `limit` bytes."""
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            if size <= limit:
                return ""
            f.seek(max(limit, size - limit))
            return f"\n[{max(0, size - 2 * limit)} bytes left out]\n" + f.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""
