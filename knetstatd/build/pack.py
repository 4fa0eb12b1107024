# SPDX-License-Identifier: GPL-2.0-or-later
"""Packing a staged artefact as dkms's archive, its modules signed: what publishing hands to `dkms ldtarball`.

Rule: the stage is written by a build that is not trusted. A module is read from it without following a link, and no more of it
than a module can have.
"""

from __future__ import annotations

import gzip
import lzma
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.build import sign as signing
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log
from knetstatd.formats import compression, module_file
from knetstatd.system import files, process

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.build.compile import Job
    from knetstatd.state import staged

ARCHIVE = "artefact.dkms.tar.gz"
_MAX_MODULE = 512 << 20
# xz as the kernel's own decompressor takes it (Documentation/staging/xz.rst): CRC32, a dictionary of at most 1 MiB.
_XZ = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]


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
        copy.write_bytes(data := _untrusted(module))
        # dkms before 3.1 packs with CRC64, which no kernel unpacks: an upgrade to a kmod that leaves it to the kernel loses it.
        if key is not None or compression.refused(data[:8]):
            _repack(job.root, copy, key, work)
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


def _repack(root: Path, path: Path, key: signing.Key | None, work: Path) -> None:
    """Signs a module in place, if there is a key. A compressed one is unpacked for it, and packed as the kernel takes it."""
    plain = path.with_name(path.name.partition(".ko")[0] + ".ko")
    env = process.environment(root=root)
    match path.suffix:
        case ".xz":
            plain.write_bytes(lzma.decompress(path.read_bytes()))
        case ".gz":
            plain.write_bytes(gzip.decompress(path.read_bytes()))
        case ".zst":
            process.run(["zstd", "-dqf", os.fspath(path), "-o", os.fspath(plain)], timeout=60, env=env)
    if key is not None:
        plain.write_bytes(module_file.unsigned(plain.read_bytes()))
        signing.sign(plain, key, work)
    match path.suffix:
        case ".xz":
            path.write_bytes(lzma.compress(plain.read_bytes(), check=lzma.CHECK_CRC32, filters=_XZ))
        case ".gz":
            path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        case ".zst":
            process.run(["zstd", "-qf", os.fspath(plain), "-o", os.fspath(path)], timeout=60, env=env)
    if plain != path:
        plain.unlink()
