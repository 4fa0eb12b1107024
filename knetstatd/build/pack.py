# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing a staged artefact as dkms's archive, its modules signed: what publishing hands to `dkms ldtarball`.

Rule: the stage is written by a build that is not trusted. A module is read from it without following a link, and no more of it
than a module can have.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.build import sign as signing
from knetstatd.core import names
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log
from knetstatd.dkms import dkms_framework
from knetstatd.formats import module_file
from knetstatd.system import files, process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.build.compile import Job
    from knetstatd.state import staged

ARCHIVE = "artefact.dkms.tar"  # not packed itself: what is in it, is
_MAX_MODULE = 512 << 20
_SECONDS = 600  # to pack or unpack one module: 80 MB take 30 on one slow processor


class _Packer(NamedTuple):
    """A program that packs. unpack, pack: its options; the second if framework.conf's `setting` says nothing."""

    program: str
    unpack: tuple[str, ...]
    pack: tuple[str, ...]
    setting: str


# xz as dkms has it from 3.1 on, and as kernels take it (Documentation/staging/xz.rst): CRC32, a dictionary of at most 1 MiB.
# dkms before 3.1 packs with CRC64, which no kernel unpacks: an upgrade to a kmod that leaves it to the kernel loses the module.
_PACKERS = {
    ".xz": _Packer("xz", ("-dqf",), ("--check=crc32", "--lzma2=dict=1MiB", "-T0"), "compress_xz_opts"),
    ".gz": _Packer("gzip", ("-dqf",), ("-n",), "compress_gzip_opts"),
    ".zst": _Packer("zstd", ("-dqf", "--rm"), ("--rm", "-T0"), "compress_zstd_opts"),
}


def pack(job: Job, artefact: staged.Staged, headers: Path, inherit: Sequence[int]) -> None:
    """Packs beside the staged artefact, while others still hold the shared trees: publishing begins with that.

    Does nothing if the signing key has yet to be made, or cannot sign: publishing sees to that. Raises BuildError.
    """
    key = signing.key_for(job.root, job.places, job.kernel, headers)
    if key is not None and not signing.exists(key):
        return
    place = artefact.tree.parent
    with tempfile.TemporaryDirectory(prefix=".pack.", dir=place) as work:
        try:
            made = archive(job, artefact, key, Path(work), inherit)
        except BuildError as e:
            if e.kind == Kind.SIGNING:
                return
            raise
        files.sync(made)
        made.rename(place / ARCHIVE)


def packed(artefact: staged.Staged, key: signing.Key | None) -> Path | None:
    """The archive that `pack` has made, None if there is none or the key was replaced since."""
    path = artefact.tree.parent / ARCHIVE
    identity = files.identity(path)
    return path if identity and (key is None or signing.changed(key) < identity.ctime_ns) else None


def archive(job: Job, artefact: staged.Staged, key: signing.Key | None, work: Path, inherit: Sequence[int]) -> Path:
    """Makes the archive in `work`, the modules signed if there is a key. Raises BuildError."""
    tree = Path(tempfile.mkdtemp(prefix="tree.", dir=work))
    registered = tree / job.package / job.version
    arch = artefact.modules[0].parent.parent.name
    place = registered / job.kernel / arch
    (place / "module").mkdir(parents=True)
    (place / "log").mkdir()
    (registered / "source").symlink_to(job.source)
    for module in artefact.modules:
        copy = place / "module" / module.name
        copy.write_bytes(_untrusted(module))
        if key is not None or copy.suffix in _PACKERS:  # it is only stored, see compile
            _repack(job, copy, key, work)
    (place / "log" / "make.log").write_text(files.text(artefact.log) or "")
    for name, path in artefact.more:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(files.untrusted(path, _MAX_MODULE))
    path = work / ARCHIVE
    done = process.run(
        ["dkms", "mktarball", "--binaries-only", "-m", job.package, "-v", job.version, "-k", job.kernel,
         "--dkmstree", os.fspath(tree), f"--archive={path}"],
        timeout=60, env=process.environment(work, root=job.root), cwd=work, keep=inherit,
    )  # fmt: skip
    if not path.is_file():
        raise BuildError(Kind.PUBLISH, "dkms mktarball made no archive", "", "", build_log.last_lines(done.text, 4))
    return path


def _untrusted(path: Path) -> bytes:
    """A staged file's contents. Raises BuildError for an endless file or an empty one, and OSError for a link."""
    try:
        data = files.untrusted(path, _MAX_MODULE)
    except KnetstatdError as e:
        raise BuildError(Kind.PUBLISH, f"the staged module {e.what}", os.fspath(path), "Build it again") from e
    if not data:
        raise BuildError(Kind.PUBLISH, "the staged module is empty", os.fspath(path), "Build it again")
    return data


def _repack(job: Job, path: Path, key: signing.Key | None, work: Path) -> None:
    """Signs a module in place, if there is a key. A compressed one is unpacked for it, and packed as the kernel takes it."""
    packer = _PACKERS.get(path.suffix)
    plain = path if packer is None else path.with_suffix("")
    if packer is not None:
        _run(job, packer, packer.unpack, path, plain)
    if key is not None:
        data = plain.read_bytes()
        if len(bare := module_file.unsigned(data)) != len(data):
            plain.write_bytes(bare)
        signing.sign(plain, key, work)
    if packer is not None:
        said = getattr(dkms_framework.framework(job.root), packer.setting).split()
        _run(job, packer, (*(said or packer.pack), "-qf"), plain, path)


def _run(job: Job, packer: _Packer, options: Sequence[str], path: Path, makes: Path) -> None:
    """Has a file replaced by another. Raises BuildError if that is not there afterwards."""
    argv = [packer.program, *options, os.fspath(path)]
    done = process.run(argv, timeout=_SECONDS, env=process.environment(root=job.root), cwd=path.parent)
    if done.code or not makes.is_file():
        what = f"{packer.program} failed: {names.clean(' '.join(done.text.split()), 300)}"
        raise BuildError(Kind.PUBLISH, what, os.fspath(path), "Look at the compress_*_opts in /etc/dkms/framework.conf")
