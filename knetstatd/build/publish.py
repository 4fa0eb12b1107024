# SPDX-License-Identifier: GPL-2.0-or-later
"""Putting a staged and proven module into DKMS and /lib/modules.

Rules:

1. The caller holds our lock and has just seen that no package transaction is open and no foreign dkms runs.
2. One way for every state that was there before (nothing, a wrong module, a torn one, a directory that dkms cannot get past):
   `dkms ldtarball --force` replaces the build, `dkms install --force` replaces what is installed. No recompilation.
3. dkms's exit codes and `dkms status` decide nothing: the files do, verified again from where modprobe will read them.
4. What is published is on the disk before it is called published: dkms copies without fsync, and a power cut then leaves an
   empty module under the right name.
5. What is published is of the source as it was, and says so by its time, whatever the clock says meanwhile.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.state.paths import PUBLISHING
from knetstatd.diagnosis import build_log
from knetstatd.system import files, process
from knetstatd.machine import dkms_tree, kernels
from knetstatd.build import sign as signing
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import ELSEWHERE, Kind, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from knetstatd.build.compile import Job
    from knetstatd.core.model import Check, Proof
    from knetstatd.state import staged

_MAX_MODULE = 512 << 20
ARCHIVE = "artefact.dkms.tar.gz"
# xz as the kernel's own decompressor takes it (Documentation/staging/xz.rst): CRC32, a dictionary of at most 1 MiB.
_XZ = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]


def pack(job: Job, artefact: staged.Staged, headers: Path, inherit: Sequence[int]) -> None:
    """Does what publishing would begin with, beside the staged artefact, while others still hold the shared trees.

    Nothing is done where the signing key has yet to be made: that is no part of the stage. Raises BuildError.
    """
    key = signing.key_for(headers)
    if key is not None and not signing.exists(key):
        return
    place = artefact.tree.parent
    with tempfile.TemporaryDirectory(prefix=".pack.", dir=place) as work:
        archive = _archive(job, artefact, key, Path(work), inherit)
        files.sync(archive)
        archive.rename(place / ARCHIVE)


def packed(artefact: staged.Staged, key: signing.Key | None) -> Path | None:
    """What `pack` has made, unless the key was replaced since."""
    archive = artefact.tree.parent / ARCHIVE
    seen = files.identity(archive)
    return archive if seen and (key is None or signing.changed(key) < seen.ctime_ns) else None


def publish(
    job: Job,
    artefact: staged.Staged,
    headers: Path,
    prove: Callable[[], Iterable[Proof]],
    inherit: Sequence[int],
    tick: Callable[[], None] | None = None,
) -> None:
    """Publishes; raises BuildError. headers: the kernel's.  prove: verifies what is installed.  inherit: our lock."""
    _refuse_read_only(job.kernel)
    work = Path(tempfile.mkdtemp(prefix=PUBLISHING, dir=job.places.stages))
    changed = kernels.changed(job.source)  # now: what is changed from here on is not in what is published
    try:
        key = signing.key_for(headers)
        if key is not None and not signing.exists(key):
            signing.make(key, work)
        archive = packed(artefact, key) or _archive(job, artefact, key, work, inherit)
        _dkms(["ldtarball", "--force", f"--archive={archive}"], job, work, inherit, tick)
        installed = _dkms(
            ["install", "--force", "-m", job.package, "-v", job.version, "-k", job.kernel], job, work, inherit, tick
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    date(dkms_tree.tree(Path("/")) / job.package / job.version / job.kernel, changed)
    proofs = tuple(prove())
    # What the machine forbids is not this publication's failure; a module that is still not of this source is.
    failed = next((proof for proof in proofs if not (proof.holds(ELSEWHERE) and proof.is_current)), None)
    if failed is not None or not proofs:
        worst = failed.first(ELSEWHERE) if failed else None
        reason = worst.reason or worst.found if worst else "no module is installed"
        if worst and failed and not failed.path:
            reason = f"{worst.expected}: {reason}"
        kind = _kind(installed)
        if failed and failed.holds(ELSEWHERE) and (altered := _altered(failed)):
            kind, worst = Kind.CONF, altered
            reason = f"{altered.reason}: POST_INSTALL in dkms.conf, or a hook of this machine, has changed it"
        raise BuildError(
            kind,
            f"dkms install did not leave a module that loads: {reason}",
            failed.path if failed else "",
            worst.fix if worst else "",
            build_log.last_lines(installed, 4),
        )
    _sync(job, proofs)


def _altered(proof: Proof) -> Check | None:
    """The check that says that a good module is not the file that DKMS has just installed."""
    origins = (check for check in proof.checks if check.name == "origin" and check.result is Result.WARN)
    return next((check for check in origins if check.expected.startswith("/")), None)


def date(build: Path, changed: float) -> None:
    """Makes the modules that DKMS keeps in a build's directory younger than their source.

    DKMS copies them without their time, and where the clock was set back they would for ever be from before the source.
    """
    for copy in build.glob("*/module/*"):
        if copy.lstat().st_mtime <= changed:
            os.utime(copy, (changed + 1, changed + 1), follow_symlinks=False)


def _refuse_read_only(kernel: str) -> None:
    """dkms 3.0 hides that a file system is read-only, and says `installed` of what it could not write."""
    for place in (f"/lib/modules/{kernel}", os.fspath(dkms_tree.tree(Path("/")))):
        if os.path.isdir(place) and os.statvfs(place).f_flag & os.ST_RDONLY:
            raise BuildError(
                Kind.READ_ONLY, f"{place} is on a read-only file system", place, "Remount it writable, or look at dmesg for why"
            )


def _kind(output: str) -> Kind:
    if "No space left" in output:
        return Kind.DISK
    return Kind.READ_ONLY if "Read-only file system" in output else Kind.PUBLISH


def _archive(job: Job, artefact: staged.Staged, key: signing.Key | None, work: Path, inherit: Sequence[int]) -> Path:
    """The artefact in dkms's interchange format, its modules signed where there is a key."""
    tree = work / "tree"
    registered = tree / job.package / job.version
    arch = artefact.modules[0].parent.parent.name
    place = registered / job.kernel / arch
    (place / "module").mkdir(parents=True)
    (place / "log").mkdir()
    (registered / "source").symlink_to(job.source)
    for module in artefact.modules:
        copy = place / "module" / module.name
        copy.write_bytes(_untrusted(module))
        if key is not None:
            _sign(copy, key, work)
    log = files.text(artefact.log) or ""
    (place / "log" / "make.log").write_text(log)
    archive = work / ARCHIVE
    done = process.run(
        ["dkms", "mktarball", "--binaries-only", "-m", job.package, "-v", job.version, "-k", job.kernel,
         "--dkmstree", os.fspath(tree), f"--archive={archive}"],
        timeout=60, env=process.environment(work), cwd=work, keep=inherit,
    )  # fmt: skip
    if not archive.is_file():
        raise BuildError(Kind.PUBLISH, "dkms mktarball made no archive", "", "", build_log.last_lines(done.text, 4))
    return archive


def _untrusted(path: Path) -> bytes:
    """A staged file's contents; the stage is written by a build that is not trusted: no link, no device, no endless file."""
    try:
        data = files.untrusted(path, _MAX_MODULE)
    except KnetstatdError as e:
        raise BuildError(Kind.PUBLISH, f"the staged module {e.what}", os.fspath(path), "Build it again") from e
    if not data:
        raise BuildError(Kind.PUBLISH, "the staged module is empty", os.fspath(path), "Build it again")
    return data


def _sign(path: Path, key: signing.Key, work: Path) -> None:
    """Signs a module in place; a compressed one is unpacked for it and packed again."""
    plain = path.with_name(path.name.partition(".ko")[0] + ".ko")
    match path.suffix:
        case ".xz":
            plain.write_bytes(lzma.decompress(path.read_bytes()))
        case ".gz":
            plain.write_bytes(gzip.decompress(path.read_bytes()))
        case ".zst":
            process.run(["zstd", "-dqf", os.fspath(path), "-o", os.fspath(plain)], timeout=60)
    signing.sign(plain, key, work)
    match path.suffix:
        case ".xz":
            path.write_bytes(lzma.compress(plain.read_bytes(), check=lzma.CHECK_CRC32, filters=_XZ))
        case ".gz":
            path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        case ".zst":
            process.run(["zstd", "-qf", os.fspath(plain), "-o", os.fspath(path)], timeout=60)
    if plain != path:
        plain.unlink()


def _dkms(words: list[str], job: Job, work: Path, inherit: Sequence[int], tick: Callable[[], None] | None) -> str:
    done = process.run(["dkms", *words], timeout=job.timeout, env=process.environment(work), cwd=work, keep=inherit, tick=tick)
    if done.timed_out:
        raise BuildError(Kind.TIMEOUT, f"dkms {words[0]} did not end within {job.timeout:g} s and was killed")
    return done.text


def _sync(job: Job, proofs: Iterable[Proof]) -> None:
    """Makes what was published durable: the modules, depmod's files, dkms's copy, and the directories between."""
    tree = Path("/lib/modules").resolve() / job.kernel
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
    registered = dkms_tree.tree(Path("/")) / job.package
    for where, _, found in os.walk(registered / job.version / job.kernel):
        for name in found:
            if not os.path.islink(os.path.join(where, name)):
                files.sync(Path(where) / name)
        files.sync_dir(Path(where))
    files.sync_dir(registered / job.version)
    files.sync_dir(registered)
