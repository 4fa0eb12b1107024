# SPDX-License-Identifier: GPL-2.0-or-later
"""Staging: a package is compiled and proven before anything in the system changes.

Rules:

1. Nothing is written outside the stage directory (see compile for what the compilation itself may do).
2. The result appears under its final name by one rename, and only after `verify` found nothing against it.
3. A compilation ends at once if the package leaves DKMS.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.build import compile_unit, room
from knetstatd.core.errors import BuildError
from knetstatd.core.model import UNPUBLISHED, Kind, Proof, Result, Retry
from knetstatd.diagnosis import build_log, compare_kernels, hooks, uname_traps
from knetstatd.dkms import dkms_tree
from knetstatd.machine import kernels
from knetstatd.state import staged
from knetstatd.system import files, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knetstatd.build.compile import Job

OUTPUT = "output"  # what dkms said, beside the tree


def stage(job: Job, prove: Callable[[Path, Sequence[Path]], Proof], tick: Callable[[], None] | None = None) -> staged.Staged:
    """Compiles the package and proves its modules; raises BuildError with the cause.

    prove: what `verify` says of a .ko for the target kernel, with all that the package makes.  tick: called while it compiles.
    """
    staged.clear(job.places, job.kernel, job.package)
    final = job.places.stage(job.kernel, job.package)
    final.parent.mkdir(parents=True, exist_ok=True)
    compiled = job.places.compile_cache if units.available(job.root, compile_unit.TEMPLATE) else final.parent
    room.refuse_full(job.root, job.places, job.kernel, job.package, compiled)
    work = Path(tempfile.mkdtemp(prefix=f".{job.package}.", dir=final.parent))
    work.chmod(0o755)  # the daemon, which is not root, looks whether something is staged
    try:
        artefact = _compile(job, work, tick)
        _prove(job, artefact, prove)
        for path in artefact.modules:
            files.sync(path)
        (work / "fingerprint").write_text(job.fingerprint)
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    kept = staged.find(job.places, job.kernel, job.package, job.version, job.fingerprint)
    assert kept is not None, "what was just staged is there"
    return kept


def _compile(job: Job, work: Path, tick: Callable[[], None] | None) -> staged.Staged:
    """The compiled modules, or the reason why there are none."""

    def look() -> None:
        _refuse_removed(job)
        if tick is not None:
            tick()

    try:
        done = compile_unit.compile_package(job, work, look)
    finally:  # whatever came of it: that the package was gone is the cause
        _refuse_removed(job)
    script = hooks.ended_build(done.log, done.output)
    if done.staged is not None and not (script and script.code):  # dkms does not install what POST_BUILD refuses
        (work / OUTPUT).write_text(done.output)
        with contextlib.suppress(OSError):  # without it, the next build begins and may be ended
            room.remember(job.places, job.package, room.Need(done.taken, room.held(done.staged.tree)))
        return done.staged
    kept = _keep_log(job, done.log, done.output)
    if done.timed_out:
        raise BuildError(
            Kind.TIMEOUT, f"the build did not end within {job.timeout:g} s and was killed", kept,
            "If it needs longer, raise compile_timeout_seconds", build_log.last_lines(done.log, 3),
        )  # fmt: skip
    if done.code < 0:
        raise BuildError(Kind.INTERRUPTED, f"dkms was killed by signal {-done.code}", kept)
    cause = build_log.classify(done.log, done.output, done.code)
    if job.lacking and cause.kind.retry is Retry.NEVER and cause.kind is not Kind.EXCLUDED:
        cause = build_log.lacks(" ".join(job.lacking), done.log or done.output)
    cause = compare_kernels.refine(cause, job.root, job.kernel, job.source)
    error = BuildError(cause.kind, cause.reason, kept, cause.fix, cause.evidence)
    raise _under_override(job, _of_directory(job, error) if cause.kind is Kind.KERNEL_DIR else error)


def _wrong_kernel(job: Job, what: str, kept: str, evidence: tuple[str, ...] = ()) -> BuildError:
    """A build that took another kernel for its target, with the lines that may have made it."""
    reads = uname_traps.reads(job.source, job.passed)
    return BuildError(Kind.WRONG_KERNEL, what, kept, uname_traps.cure(reads), (*_quoted(reads), *evidence))


def _quoted(reads: Sequence[uname_traps.RunningKernelRead]) -> tuple[str, ...]:
    return tuple(f"{read.file}:{read.line}: {read.text}" for read in reads[:3])


def _of_directory(job: Job, error: BuildError) -> BuildError:
    """A build that took what is not the kernel's directory, with the lines that ask for the running kernel, if any do."""
    running = kernels.running()
    if running != job.kernel and any(running in line for line in error.evidence):
        what = f"it compiles for the running kernel, {running}, not {job.kernel}"
        return _wrong_kernel(job, what, error.where, error.evidence)
    if reads := uname_traps.reads(job.source, job.passed):
        return BuildError(error.kind, error.what, error.where, uname_traps.cure(reads), (*_quoted(reads), *error.evidence))
    return error


def _under_override(job: Job, error: BuildError) -> BuildError:
    """A failure under an override of ours names that first: it may be what is wrong."""
    paths = uname_traps.ours(job.root, job.package, job.version)
    if not paths:
        return error
    what = f"it is built under {paths[0]}, which `knetstatctl repair` wrote: {error.what}"
    return BuildError(error.kind, what, error.where, f"Delete {paths[0]} and build it again; else: {error.fix}", error.evidence)


def _refuse_removed(job: Job) -> None:
    """Ends the work on a package that somebody removes from DKMS meanwhile: what it needs goes, and nobody wants the result."""
    name = f"{job.package}/{job.version}"
    if not os.path.lexists(dkms_tree.tree(job.root) / name / "source"):
        raise BuildError(Kind.REMOVED, "it was removed from DKMS while it was compiled", "", f"dkms add {name}")


def _keep_log(job: Job, log: str, output: str) -> str:
    path = job.places.log(job.kernel, job.package)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"# dkms build {job.package}/{job.version} -k {job.kernel}\n{output}\n# make.log\n{log}"
    files.write(path, text.encode(), 0o640)
    return os.fspath(path)


def _prove(job: Job, artefact: staged.Staged, prove: Callable[[Path, Sequence[Path]], Proof]) -> None:
    for path in artefact.modules:
        proof = prove(path, artefact.modules)
        release = next((check for check in proof.checks if check.name == "release"), None)
        foreign = release is not None and release.result is not Result.PASS
        if proof.holds(UNPUBLISHED, linked=True) and not foreign:
            continue
        worst = proof.first(UNPUBLISHED)
        kept = _keep_log(job, files.text(artefact.log) or "", "")
        named = any(check.name == "vermagic" and check.result is not Result.NOT_APPLICABLE for check in proof.checks)
        if release is not None and foreign and named:
            what = f"{path.name} was compiled for another kernel: {release.found}, not {job.kernel}"
            raise _wrong_kernel(job, what, kept)
        reason = worst.reason if worst else "it could not be verified"
        fix = worst.fix if worst else ""
        if worst is None or worst.result is Result.UNKNOWN:
            what = f"{path.name} was compiled, and whether it loads is not known: {reason}"
            raise BuildError(Kind.UNPROVEN, what, kept, fix)
        raise BuildError(Kind.NOT_LOADABLE, f"{path.name} was compiled but will not load: {reason}", kept, fix)
