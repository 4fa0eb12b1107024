# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiling a module in a private DKMS tree, and proving the result, before anything in the system changes.

Rules:

1. Nothing is written outside the stage directory: not /var/lib/dkms, not /lib/modules, no signing key is read or made.
2. The program that answers `uname -r` to the build answers the target kernel: half of all broken packages compile for the
   running one. dkms is not misled where it matters: it compares the two only when it installs.
3. The result appears under its final name by one rename, and only after `verify` found nothing against it.
4. dkms's exit code decides nothing. The files do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import artefact, diagnose, files, run
from .errors import BuildError
from .model import Kind, Proof

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# What a compile of one module was seen to need, several times over; less than this is called a full disk at once.
_FREE = 64 << 20
_LOG_LIMIT = 1 << 20

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

    state: Path
    kernel: str
    module: str
    version: str
    source: Path
    passed: Collection[str]
    fingerprint: str
    timeout: float


def stage(job: Job, prove: Callable[[Path], Proof], tick: Callable[[], None] | None = None) -> artefact.Staged:
    """Compiles the module and proves it; raises BuildError with the cause.

    prove: what `verify` says of a .ko for the target kernel.  tick: called while it compiles.
    """
    artefact.clear(job.state, job.kernel, job.module)
    final = artefact.directory(job.state, job.kernel, job.module)
    final.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(final.parent).free
    if free < _FREE:
        raise BuildError(
            Kind.DISK, f"only {free >> 20} MiB are free, {_FREE >> 20} MiB are wanted", os.fspath(final.parent), "Free space"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{job.module}.", dir=final.parent))
    try:
        staged = _compile(job, work, tick)
        _prove(job, staged, prove)
        for path in staged.modules:
            files.sync(path)
        (work / "fingerprint").write_text(job.fingerprint)
        shutil.rmtree(work / "bin")
        shutil.rmtree(work / "tmp")
        work.rename(final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = artefact.find(job.state, job.kernel, job.module, job.version, job.fingerprint)
    assert found is not None, "what was just staged is there"
    return found


def _compile(job: Job, work: Path, tick: Callable[[], None] | None) -> artefact.Staged:
    tree, temporary, programs = work / "tree", work / "tmp", work / "bin"
    registered = tree / job.module / job.version
    registered.mkdir(parents=True)
    (registered / "source").symlink_to(job.source)
    temporary.mkdir()
    programs.mkdir()
    real = shutil.which("uname", path=run.PATH) or "/bin/uname"
    (programs / "uname").write_text(_UNAME.format(real=real, kernel=job.kernel))
    (programs / "uname").chmod(0o755)
    done = run.run(
        ["dkms", "build", "-m", job.module, "-v", job.version, "-k", job.kernel, "--dkmstree", os.fspath(tree)],
        timeout=job.timeout,
        # No program of this name: dkms then leaves the module unsigned, and makes no key. Publishing signs.
        env=run.environment(temporary, [os.fspath(programs)], {"sign_file": os.fspath(work / "no-signing-here")}),
        cwd=work,
        tick=tick,
    )
    found = artefact.built(tree, job.kernel, job.module, job.version)
    if found is not None and not done.timed_out:
        return found
    made = registered / "build" / "make.log"
    log = (files.text(made, _LOG_LIMIT // 2) or "") + _end_of(made, _LOG_LIMIT // 2)
    kept = _keep_log(job, log, done.text)
    if done.timed_out:
        raise BuildError(
            Kind.TIMEOUT, f"the build did not end within {job.timeout:g} s and was killed", kept,
            "If it needs longer, raise compile_timeout_seconds", diagnose.last_lines(log, 3),
        )  # fmt: skip
    if done.code < 0:
        raise BuildError(Kind.INTERRUPTED, f"dkms was killed by signal {-done.code}", kept)
    cause = diagnose.classify(log, done.text, done.code)
    raise BuildError(cause.kind, cause.reason, kept, cause.fix, cause.evidence)


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


def _keep_log(job: Job, log: str, output: str) -> str:
    path = artefact.log_path(job.state, job.kernel, job.module)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"# dkms build {job.module}/{job.version} -k {job.kernel}\n{output}\n# make.log\n{log}"
    files.write(path, text.encode("utf-8", "replace"), 0o640)
    return os.fspath(path)


def _prove(job: Job, staged: artefact.Staged, prove: Callable[[Path], Proof]) -> None:
    for path in staged.modules:
        proof = prove(path)
        release = next((c for c in proof.checks if c.name == "release"), None)
        if proof.loads and (release is None or release.result == "pass"):
            continue
        worst = proof.worst
        kept = _keep_log(job, files.text(staged.log) or "", "")
        reads = diagnose.running_kernel_reads(job.source, job.passed)
        if release is not None and release.result != "pass" and reads:
            first = reads[0]
            raise BuildError(
                Kind.WRONG_KERNEL, f"{path.name} was compiled for another kernel: {release.found}, not {job.kernel}", kept,
                f"{first.file} line {first.line} reads the running kernel; set {first.variable or 'it'} in dkms.conf's MAKE",
                tuple(f"{r.file}:{r.line}: {r.text}" for r in reads[:3]),
            )  # fmt: skip
        reason = worst.reason if worst else "it could not be verified"
        fix = worst.fix if worst else ""
        raise BuildError(Kind.NOT_LOADABLE, f"{path.name} was compiled but will not load: {reason}", kept, fix)
