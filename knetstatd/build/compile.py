# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiling a module in a private DKMS tree: as a program of a unit without privileges where systemd is, else as our child.

Rules:

1. Nothing is written outside the working directory: not /var/lib/dkms, not /lib/modules, no signing key is read or made.
2. The program that answers `uname -r` to the build answers the target kernel: half of all broken packages compile for the
   running one. dkms is not misled where it matters: it compares the two only when it installs.
3. dkms's exit code decides nothing. The files do.
4. What comes out of the unit was made by a stranger: it is copied, each file of it opened below the unit's own directory
   without following a link, a regular file of the unit's user, of a bounded size. It is looked at only after that.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.state import staged
from knetstatd.state.paths import OUTCOME, RESULT
from knetstatd.machine import dkms_tree
from knetstatd.system import documents, files, process, units
from knetstatd.core import names
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from knetstatd.state.paths import Places
    from knetstatd.verdict.observe import Machine

TEMPLATE = "compile"
_LOG_LIMIT = 1 << 20
_MAX_MODULE, _MAX_MODULES = 512 << 20, 256

_UNAME = """#!/bin/sh
# Answers the kernel that the module is built for, where the real one would answer the kernel that runs.
real=$({real} -r)
answer=$({real} "$@") || exit
case $answer in
*"$real"*) printf '%s\\n' "${{answer%%"$real"*}}{kernel}${{answer#*"$real"}}" ;;
*) printf '%s\\n' "$answer" ;;
esac
"""


class Job(NamedTuple):
    """One module for one kernel. source: the module's source directory.  passed: make variables that dkms.conf sets."""

    places: Places
    kernel: str
    package: str
    version: str
    source: Path
    passed: Collection[str]
    fingerprint: str
    timeout: float


class Compiled(NamedTuple):
    """How a compilation ended. staged: what it made, None where it made nothing.  output: dkms's.  log: make's.

    code: dkms's exit status, -N when signal N killed it.
    """

    staged: staged.Staged | None
    code: int
    timed_out: bool
    output: str
    log: str


def compile_module(job: Job, work: Path, tick: Callable[[], None] | None = None) -> Compiled:
    """Compiles in `work`, an empty directory, with as few privileges as this machine can give; tick is called meanwhile.

    Raises BuildError where the unit that compiles ended by something else than its own work.
    """
    if units.available(TEMPLATE):
        return _in_unit(job, work, tick)
    return _here(job, work, tick)


def _here(job: Job, work: Path, tick: Callable[[], None] | None) -> Compiled:
    tree, temporary, programs = work / "tree", work / "tmp", work / "bin"
    registered = tree / job.package / job.version
    registered.mkdir(parents=True)
    (registered / "source").symlink_to(job.source)
    others = list(_installed_beside(job, tree))
    temporary.mkdir()
    programs.mkdir()
    real = shutil.which("uname", path=process.PATH) or "/bin/uname"
    (programs / "uname").write_text(_UNAME.format(real=real, kernel=job.kernel))
    (programs / "uname").chmod(0o755)
    done = process.run(
        ["dkms", "build", "-m", job.package, "-v", job.version, "-k", job.kernel, "--dkmstree", os.path.realpath(tree)],
        timeout=job.timeout,
        # No program of this name: dkms then leaves the module unsigned, and makes no key. Publishing signs.
        env=process.environment(temporary, [os.fspath(programs)], {"sign_file": os.fspath(work / "no-signing-here")}),
        cwd=work,
        tick=tick,
    )
    for other in others:
        shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(programs)
    shutil.rmtree(temporary, ignore_errors=True)
    found = staged.built(tree, job.kernel, job.package, job.version) if not done.timed_out else None
    made = registered / "build" / "make.log" if found is None else found.log
    log = (files.text(made, _LOG_LIMIT // 2) or "") + _end_of(made, _LOG_LIMIT // 2)
    return Compiled(found, done.code, done.timed_out, done.text, log)


def _installed_beside(job: Job, tree: Path) -> Iterator[Path]:
    """Links what DKMS has installed for the kernel into a private tree: dkms 3.2 insists on what BUILD_DEPENDS names."""
    for package in dkms_tree.registered(Path("/")).packages.values():
        if package.name == job.package or (found := package.installed(job.kernel)) is None:
            continue
        version, build = found
        home, place = tree / package.name, Path(version.version, build.kernel, build.arch)
        (home / place).mkdir(parents=True)
        for name in files.names(build.directory):
            (home / place / name).symlink_to(build.directory / name)
        (home / version.version / "source").symlink_to(version.source)
        (home / f"kernel-{build.kernel}-{build.arch}").symlink_to(place)
        yield home


def _end_of(path: Path, limit: int) -> str:
    """What `text` with this limit has left out, from the end."""
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            if size <= limit:
                return ""
            f.seek(max(limit, size - limit))
            return f"\n[{max(0, size - 2 * limit)} bytes left out]\n" + f.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


# -- the unit's side ------------------------------------------------------------------------------------------------------


def unit_program(machine: Machine, what: str, cache: str) -> None:
    """The program of the unit. what: KERNEL:MODULE.  cache: the directory in which it may write, emptied first.

    Compiles there, and leaves the result there and nothing else.  Raises KnetstatdError where that cannot be done.
    """
    process.adopt_orphans()
    kernel, _, package = what.partition(":")
    names.kernel(kernel)
    names.package(package)
    if not cache:
        raise KnetstatdError("this is the program of knetstatd-compile@.service", fix=f"Run: knetstatctl build {kernel}")
    seen = machine.observe(machine.look(kernel), package, own=True)
    if seen.source is None:
        error = {"what": seen.source_reason or f"{package} has no source", "fix": seen.source_fix}
        _leave(Path(cache), {"of": [kernel, package, seen.observation.version], "error": error})
        return
    timeout = machine.config.compile_timeout_seconds
    job = Job(machine.places, kernel, package, seen.observation.version, seen.source, seen.passed, seen.fingerprint, timeout)
    with process.undisturbed():  # the machine's stop waits for it, as for the builder that waits for this
        _serve(job, Path(cache))


def _emptied(cache: Path) -> Path:
    for name in files.names(cache):
        shutil.rmtree(cache / name, ignore_errors=True)
    result = cache / "new"
    result.mkdir()
    return result


def _leave(cache: Path, document: dict[str, Any]) -> None:
    """Leaves a result without modules."""
    result = _emptied(cache)
    (result / OUTCOME).write_text(json.dumps(document))
    result.rename(cache / RESULT)


def _serve(job: Job, cache: Path) -> None:
    result, work = _emptied(cache), cache / "work"
    work.mkdir()
    outcome = _here(job, work, None)
    made = () if outcome.staged is None else outcome.staged.modules
    for path in made:
        shutil.copyfile(path, result / path.name, follow_symlinks=False)
    document = {
        "of": [job.kernel, job.package, job.version],
        "arch": made[0].parent.parent.name if made else "",
        "modules": [path.name for path in made],
        "code": outcome.code,
        "timed_out": outcome.timed_out,
        "output": outcome.output,
        "log": outcome.log,
    }
    (result / OUTCOME).write_text(json.dumps(document))
    process.kill_orphans()
    shutil.rmtree(work)
    result.rename(cache / RESULT)


# -- the builder's side ---------------------------------------------------------------------------------------------------


def _in_unit(job: Job, work: Path, tick: Callable[[], None] | None) -> Compiled:
    unit = units.instance(TEMPLATE, job.kernel, job.package)
    units.kill_all(TEMPLATE)  # of a builder that was killed: we hold the lock, and all of them share one cache
    # The unit's program keeps to the time limit itself, and says so; this one is for a program that does not.
    result = units.complete(unit, job.timeout + 60, tick)
    if result == "oom-kill":
        raise BuildError(Kind.MEMORY, "the compilation was killed for want of memory", unit, _MEMORY_FIX)
    if result == "timeout":
        return Compiled(None, -9, True, "", "")
    if result == "success":
        return _adopt(job, work)
    raise BuildError(
        Kind.INTERRUPTED, f"the unit that compiles failed ({result or 'no result'})", unit, f"Run: journalctl -u '{unit}'"
    )


_MEMORY_FIX = "Give the machine more memory, or raise MemoryMax= with: systemctl edit knetstatd-compile@.service"


def _adopt(job: Job, work: Path) -> Compiled:
    """Copies what the unit left into `work`, as a dkms tree. Raises BuildError where it is not what was asked for."""
    try:
        with units.directory(job.places.compile_cache / RESULT) as result:
            owner = os.fstat(result).st_uid
            document = documents.parse(units.left(result, OUTCOME, owner, 8 * _LOG_LIMIT))
            subject = document.texts("of")
            if "error" in document and subject[:2] == (job.kernel, job.package):
                error = document.get("error")
                raise BuildError(Kind.CONF, names.clean(error.text("what"), 400), "", names.clean(error.text("fix"), 400))
            arch, listed = document.text("arch"), document.texts("modules")
            if subject != (job.kernel, job.package, job.version):
                raise KnetstatdError("it is the result of another run")
            if len(listed) > _MAX_MODULES or not all(names.is_package(name) for name in (arch or "x", *listed)):
                raise KnetstatdError("its names are not names of modules")
            code, log, output = document.integer("code"), document.text("log"), document.text("output")
            timed_out = document.flag("timed_out")
            built = work / "tree" / job.package / job.version / job.kernel / arch
            (built / "module").mkdir(parents=True)
            (built / "log").mkdir()
            for name in listed:
                (built / "module" / name).write_bytes(units.left(result, name, owner, _MAX_MODULE))
            (built / "log" / "make.log").write_text(log)
            made = staged.built(work / "tree", job.kernel, job.package, job.version)
            return Compiled(made, code, timed_out, output, log)
    except BuildError:
        raise
    except (OSError, KnetstatdError) as e:
        reason = e.strerror if isinstance(e, OSError) else str(e)
        place = os.fspath(job.places.compile_cache)
        raise BuildError(Kind.INTERRUPTED, f"the compilation left no usable result: {reason}", place) from e
