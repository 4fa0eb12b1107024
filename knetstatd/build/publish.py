# SPDX-License-Identifier: GPL-2.0-or-later
"""Putting a staged and proven package into DKMS and /lib/modules.

Rules:

1. The caller holds our lock and has just seen that no package transaction is open and no foreign dkms runs.
2. One way for every state that was there before (nothing, a wrong module, a torn one, a directory that dkms cannot get past):
   `dkms ldtarball --force` replaces the build, `dkms install --force` replaces what is installed. No recompilation. If DKMS has
   nothing installed, it is `dkms install` first: by force, dkms installs what PRE_INSTALL refuses.
3. dkms's exit codes and `dkms status` decide nothing: the files do, verified again from where modprobe will read them.
4. What is published is on the disk before it is called published: dkms copies without fsync, and a power cut then leaves an
   empty module under the right name.
5. What is published is of the source as it was when it was compiled, and says so, whatever is edited and whatever the clock
   says meanwhile.
6. Who removes a package while it is published wins: dkms has no lock, and may leave the file that ours has just installed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.build import pack
from knetstatd.build import sign as signing
from knetstatd.build.stage import OUTPUT
from knetstatd.core import names
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import ELSEWHERE, Kind
from knetstatd.diagnosis import build_log, hooks
from knetstatd.dkms import dkms_conf, dkms_framework, dkms_tree
from knetstatd.machine import busy, kernels
from knetstatd.state import digests, sources
from knetstatd.state.digests import Remark
from knetstatd.state.paths import PUBLISHING
from knetstatd.system import files, process
from knetstatd.verify import module_readings, originals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from knetstatd.build.compile import Job
    from knetstatd.core.model import Proof
    from knetstatd.state import staged


_PRE_INSTALL_FAILED = 101  # dkms(8), "EXIT STATUS"; do_install() of 3.0.10
_REMOVAL = 30.0  # seconds until a dkms that removes something is no longer waited for
_MAX_DOTTED = 1 << 16  # bytes; they hold a version


def publish(
    job: Job,
    artefact: staged.Staged,
    headers: Path,
    prove: Callable[[], Iterable[Proof]],
    inherit: Sequence[int],
    tick: Callable[[], None] | None = None,
    required: str = "",
) -> tuple[Remark, ...] | None:
    """Publishes; raises BuildError. Returns, and keeps, what does not keep a module from being loaded and is to be said.

    None: nothing is published, for the source was edited since it was compiled.
    headers: the kernel's.  prove: verifies what is installed.  inherit: our lock.
    required: why no unsigned module is installed, a clause; "" if one is, as dkms does, if it cannot be signed.
    """
    begin = time.time_ns()
    known = dkms_tree.package(job.root, job.package)
    if known is not None and (wanted := known.wanted(job.kernel).version) != job.version:
        raise BuildError(Kind.PUBLISH, f"another version was registered meanwhile: {wanted}, not {job.version}")
    age = kernels.age(job.source)  # what is edited from here on is not in what is published
    if not kernels.is_of(job.fingerprint, age):
        return None
    _refuse_unwritable(job)
    _refuse_other_name(job)
    job.places.stages.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=PUBLISHING, dir=job.places.stages))
    left_out = _dotted(artefact)
    try:
        archive, remarks = _archive(job, artefact, headers, work, inherit, required)
        said = _dkms(["ldtarball", "--force", f"--archive={archive}"], job, work, inherit, tick).text
        build = _registered(job) / job.version / job.kernel / artefact.modules[0].parent.parent.name
        if not build.is_dir():
            what = f"dkms ldtarball did not put the build into {files.below(job.root, build)}"
            raise BuildError(_kind(said), what, evidence=build_log.last_lines(said, 4))
        for name, data in left_out.items():
            files.write(build / name, data)
        obsolete = dkms_conf.evaluate(job.source, job.root, job.package, job.version, job.kernel).obsolete(job.kernel)
        installed = os.path.lexists(_registered(job) / f"kernel-{job.kernel}-{build.name}")
        for force in (False,) if obsolete else (True,) if installed else (False, True):
            output = _install(job, force, work, inherit, tick)
            _date_mark(job, build, begin)
            for one in originals.of_package(job.root, job.package, job.kernel):
                if one.worthless:  # it lay where the module belongs, and `dkms remove` would put it back there
                    originals.remove(one)
            date(build.parent, age.changed)
            proofs = tuple(prove())
            if (failure := _failure(job, proofs, output)) is None:
                break
            _refuse_removed(job, artefact, build, begin, tick)  # `dkms install --force` would undo what somebody has done
    finally:
        shutil.rmtree(work, ignore_errors=True)
    remarks += _undone(job, artefact, output)
    if failure is not None and obsolete:
        what = f"OBSOLETE_BY={obsolete} in dkms.conf says that this kernel has the module itself, and dkms does not install it"
        raise BuildError(Kind.EXCLUDED, what, failure.where, "If it should be installed, correct OBSOLETE_BY", failure.evidence)
    if failure is not None:
        raise failure
    _refuse_removed(job, artefact, build, begin, tick)
    _sync(job, proofs)
    with contextlib.suppress(OSError, KnetstatdError):  # without digests, DKMS's copy alone is what to compare with
        built = sorted((_registered(job) / job.version / job.kernel).glob("*/module/*.ko*"))
        digests.save(job.places, job.kernel, job.package, {copy: module_readings.digest(copy) for copy in built}, remarks)
        if (source := sources.of_then(job.source, age)) is not None:
            sources.save(job.places, job.kernel, job.package, built, source)
    return remarks


def _refuse_removed(job: Job, artefact: staged.Staged, build: Path, begin: int, tick: Callable[[], None] | None) -> None:
    """Raises BuildError if somebody has taken the build out of DKMS, and takes out what `dkms install` has left of it.

    begin: what is older than this time, in nanoseconds, lay there before. A dkms that is at it deletes the module first, if it
    is marked as installed yet, and the build seconds later.
    """
    end = time.monotonic() + _REMOVAL
    while (other := busy.foreign_dkms(job.root, os.getpid())) and other.removes and time.monotonic() < end:
        time.sleep(0.1)
        if tick is not None:
            tick()
    if build.is_dir():
        return
    what, fix = "it was removed from DKMS while it was published", f"dkms add {job.package}/{job.version}"
    mark = _registered(job) / f"kernel-{job.kernel}-{build.name}"
    left = [
        Path(where) / name
        for where, _, here in os.walk(files.inside(job.root, f"/lib/modules/{job.kernel}"))
        for name in here
        for module in artefact.modules
        if names.module_of(name) == names.module_of(module.name)
        and (seen := files.identity(Path(where) / name)) is not None
        and seen.ctime_ns >= begin
        and module_readings.are_same(Path(where) / name, module)
    ]
    try:
        for path in left:
            path.unlink()
        if mark.is_symlink() and not mark.exists():
            mark.unlink()
            mark.parent.rmdir()
    except OSError as e:
        shown = [files.below(job.root, path) for path in left if os.path.lexists(path)]
        if shown:
            what += f", and {shown[0]} is left of it: {e.strerror}"
            fix = f"rm {shlex.join(shown)} && depmod {job.kernel}"
    if left:
        process.run(["depmod", job.kernel], timeout=job.timeout, env=process.environment(root=job.root), tick=tick)
    raise BuildError(Kind.REMOVED, what, "", fix)


def _install(job: Job, force: bool, work: Path, inherit: Sequence[int], tick: Callable[[], None] | None) -> str:
    """`dkms install`; what it said. force: whatever is installed, and whatever PRE_INSTALL says. Raises BuildError."""
    words = ["-m", job.package, "-v", job.version, "-k", job.kernel]
    done = _dkms(["install", *(["--force"] if force else []), *words], job, work, inherit, tick)
    if done.code == _PRE_INSTALL_FAILED:
        what, fix = "PRE_INSTALL of dkms.conf failed, and dkms does not install the module then", shlex.join(words)
        evidence = build_log.last_lines(done.text, 4)
        raise BuildError(
            Kind.CONF, what, "", f"Correct the script; to install it all the same: dkms install --force {fix}", evidence
        )
    return done.text


def _archive(
    job: Job, artefact: staged.Staged, headers: Path, work: Path, inherit: Sequence[int], required: str
) -> tuple[Path, tuple[Remark, ...]]:
    """The archive to load, and what is to be said of it: modules that cannot be signed are not, as dkms leaves them.

    Raises BuildError if they are required to be.
    """
    key = signing.key_for(job.root, job.places, job.kernel, headers)
    try:
        key = key and signing.prepare(key, work)
        return pack.packed(artefact, key) or pack.archive(job, artefact, key, work, inherit), ()
    except BuildError as e:
        if e.kind != Kind.SIGNING:
            raise
        if required:
            raise BuildError(e.kind, f"{e.what}; {required}", e.where, e.fix) from e
        remark = Remark(f"it is not signed: {e.what}", e.fix)
    return pack.archive(job, artefact, None, work, inherit), (remark,)


def _dotted(artefact: staged.Staged) -> dict[str, bytes]:
    """What `dkms ldtarball` leaves out: files of a build whose names begin with a dot (BUILD_DEPENDS_REBUILD's)."""
    names = (one for one in artefact.more if one[0].startswith(".") and "/" not in one[0])
    return {name: files.untrusted(path, _MAX_DOTTED) for name, path in names}


def _undone(job: Job, artefact: staged.Staged, output: str) -> tuple[Remark, ...]:
    """What scripts of dkms.conf were not allowed to do, in the build and in the installation. output: of `dkms install`."""
    log, said = files.text(artefact.log) or "", files.text(artefact.tree.parent / OUTPUT) or ""
    by_hand = f"dkms install --force -m {job.package} -v {job.version} -k {job.kernel}"
    remarks = []
    for hook in hooks.ran(log, f"{said}\n{output}"):
        if hook.denied:
            build = hook.name.endswith("_BUILD")
            place = hook.place or "DIR"
            setting = f"TemporaryFileSystem={place}:mode=1777" if build else f"ReadWritePaths={place}"
            edit = f"systemctl edit knetstatd-{'compile' if build else 'build'}@.service, with {setting}"
            fix = f"Allow it: {edit}" if build else f"Run: {by_hand}; to allow it later: {edit}"
            remarks.append(Remark(f"{hook.name} of dkms.conf was not allowed to write: {hook.denied}", fix))
    tree = dkms_framework.framework(job.root).dkms_tree
    for one in hooks.writes_by_name(job.source, tree):
        where = f"{one.hook} of dkms.conf writes to {tree} by that name ({one.file}, line {one.line})"
        fix = "Make the script write to ${dkms_tree}, which dkms.conf can pass to it"
        remarks.append(Remark(f"{where}: that is lost, for a build has a tree of its own", fix))
    return tuple(remarks)


def _registered(job: Job) -> Path:
    """The package's place in DKMS's tree."""
    return dkms_tree.tree(job.root) / job.package


def _failure(job: Job, proofs: Sequence[Proof], output: str) -> BuildError | None:
    """Why what is installed now is not what was to be published, None if it is. output: of `dkms install`.

    What the machine forbids is not this publication's failure; a module that is still not of this source is.
    """
    failed = next((proof for proof in proofs if not (proof.holds(ELSEWHERE) and proof.is_current)), None)
    evidence = build_log.last_lines(output, 4)
    if failed is None:
        what = "dkms install did not leave a module that loads: no module is installed"
        return BuildError(_kind(output), what, evidence=evidence) if not proofs else None
    worst = failed.first(ELSEWHERE)
    kind, reason, fix = _kind(output), "no module is installed", ""
    if worst is not None:
        reason, fix = worst.reason or worst.found, worst.fix
        reason = reason if failed.path else f"{worst.expected}: {reason}"
    if worst is not None and worst.name == "contents" and failed.holds(ELSEWHERE | {"contents"}):
        kind, what = Kind.CONF, "The installed file is not the one that DKMS built"
        reason = f"{what}: POST_INSTALL in dkms.conf, or a hook of this machine, has changed it"
    return BuildError(kind, f"dkms install did not leave a module that loads: {reason}", failed.path, fix, evidence)


def date(build: Path, changed: float) -> None:
    """Makes the modules that DKMS keeps in a build's directory younger than their source.

    DKMS copies them without their time. After a clock was set back they would be older than the source for ever.
    """
    for copy in build.glob("*/module/*"):
        if copy.lstat().st_mtime <= changed:
            os.utime(copy, (changed + 1, changed + 1), follow_symlinks=False)


def _date_mark(job: Job, build: Path, begin: int) -> None:
    """Makes DKMS's mark say when the publication began: a version that was registered meanwhile is newer, and is to come.

    Else this one would look as if somebody had chosen it after that (see dkms_tree.Package.wanted).
    """
    mark = _registered(job) / f"kernel-{job.kernel}-{build.name}"
    with contextlib.suppress(OSError):
        if f"{job.version}/{job.kernel}/" in os.readlink(mark) and os.lstat(mark).st_mtime_ns > begin:
            os.utime(mark, ns=(begin, begin), follow_symlinks=False)


def _refuse_unwritable(job: Job) -> None:
    """dkms 3.0 hides that it may not write, and says `installed` of what it could not write."""
    tree, usual = dkms_framework.framework(job.root).dkms_tree, dkms_framework.Framework().dkms_tree
    for shown in (f"/lib/modules/{job.kernel}", tree):
        place = job.root / shown.lstrip("/")
        if os.path.isdir(place) and not os.access(place, os.W_OK):
            what = f"{shown} cannot be written: its file system is read-only, or it is immutable (lsattr)"
            fix = "Remount it writable, or look at dmesg for why"
            if shown == tree != usual:
                what = f"{shown}, where framework.conf has moved dkms_tree, may not be written by knetstatd-build@.service"
                fix = f"Allow it: systemctl edit knetstatd-build@.service, with ReadWritePaths={shown}"
            raise BuildError(Kind.READ_ONLY, what, shown, fix)


def _refuse_other_name(job: Job) -> None:
    """`dkms ldtarball` registers a build by what dkms.conf calls the package, not by the name under which it was added."""
    conf = dkms_conf.evaluate(job.source, job.root)
    for name, said, registered in (
        ("PACKAGE_NAME", conf.package_name, job.package),
        ("PACKAGE_VERSION", conf.package_version, job.version),
    ):
        if conf.knows(name) and said != registered:
            what = f"dkms.conf says {name}={names.show(said)}, and DKMS has the package as {registered}"
            raise BuildError(Kind.CONF, what, os.fspath(job.source / "dkms.conf"), f"Make them the same, or add it as {said}")


def _kind(output: str) -> Kind:
    """The class of a failed `dkms install`, by what the programs that it calls print (strerror(3))."""
    if "No space left" in output:
        return Kind.DISK
    return Kind.READ_ONLY if "Read-only file system" in output else Kind.PUBLISH


def _dkms(words: list[str], job: Job, work: Path, inherit: Sequence[int], tick: Callable[[], None] | None) -> process.Finished:
    env = process.environment(work, root=job.root)
    done = process.run(["dkms", *words], timeout=job.timeout, env=env, cwd=work, keep=inherit, tick=tick)
    if done.timed_out:
        raise BuildError(Kind.TIMEOUT, f"dkms {words[0]} did not end within {job.timeout:g} s and was killed")
    return done


def _sync(job: Job, proofs: Iterable[Proof]) -> None:
    """Makes what was published durable: the modules, depmod's files, dkms's copy, and the directories between."""
    tree = files.inside(job.root, f"/lib/modules/{job.kernel}")
    for proof in proofs:
        path = Path(proof.path)
        files.sync(path)
        while path != tree and tree in path.parents:
            path = path.parent
            files.sync_dir(path)
    for name in files.names(tree):
        if name.startswith("modules.") and (tree / name).is_file():
            files.sync(tree / name)
    files.sync_dir(tree)
    registered = _registered(job)
    for where, _, kept in os.walk(registered / job.version / job.kernel):
        for name in kept:
            if not os.path.islink(os.path.join(where, name)):
                files.sync(Path(where) / name)
        files.sync_dir(Path(where))
    files.sync_dir(registered / job.version)
    files.sync_dir(registered)
