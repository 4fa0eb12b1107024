# SPDX-License-Identifier: GPL-2.0-or-later
"""The next Debian release, as an apt repository for a machine of the one before: what `apt full-upgrade` brings there, and its
kernel. Downloaded once, and kept beside the roots; another root makes another one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from . import archive, roots
from .command import HOST_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .rig import Container, Result

KERNEL = (f"linux-image-{roots.FLAVOUR}", f"linux-headers-{roots.FLAVOUR}")
_PLACE = "/srv/next"


def repository(suite: str, following: str) -> Path:
    """The repository for the cached root of `suite` with its first kernel."""
    old = roots.root(suite)
    recipe = repr((old.path.name, following, KERNEL)).encode()
    path = roots.cache_dir() / "releases" / f"{suite}-{following}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with roots.in_use(old), roots.lock(path.parent / f"{suite}.lock"):
        if not path.exists():
            work = path.parent / f"{suite}.new"
            roots.remove(work)
            print(f"downloading what makes a {following} of a {suite}, once", file=sys.stderr, flush=True)
            _download(old, following, work)
            for before in path.parent.glob(f"{suite}-*"):
                roots.remove(before)
            (work / "upper" / _PLACE.lstrip("/")).rename(path)
            roots.remove(work)
    return path


def _download(old: roots.Root, following: str, work: Path) -> None:
    tree, upper, scratch = work / "tree", work / "upper", work / "scratch"
    for directory in (tree, upper, scratch):
        directory.mkdir(parents=True)
    upper.chmod(0o755)
    roots.mount_overlay(tree, old.layers(first_kernel=True), upper, scratch)
    try:
        (tree / _PLACE.lstrip("/") / "partial").mkdir(parents=True)
        for listed in (tree / "etc/apt/sources.list.d").iterdir():
            listed.unlink()
        (tree / "etc/apt/sources.list").write_text("".join(f"{line}\n" for line in archive.sources(following)))
        with roots.host_network(tree):
            _call([
                "chroot", tree, "apt-get", "-q", "-y", "--download-only", "-o", f"Dir::Cache::Archives={_PLACE}",
                "full-upgrade", *KERNEL,
            ])  # fmt: skip
        (tree / _PLACE.lstrip("/") / "partial").rmdir()
        (tree / _PLACE.lstrip("/") / "lock").unlink()
    finally:
        roots.unmount(tree)
    repo = upper / _PLACE.lstrip("/")
    (repo / "Packages").write_text(_call(["apt-ftparchive", "packages", "."], cwd=repo))


def _call(argv: Sequence[str | Path], cwd: Path | None = None) -> str:
    env = {**HOST_ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def kernel(release: str) -> archive.Kernel:
    """Its kernel, which came by a metapackage."""
    return archive.Kernel(release, roots.FLAVOUR)


def upgrade(c: Container, repo: Path) -> Result:
    """What an administrator does: new sources, `apt update`, `apt full-upgrade`, and the new release's kernel."""
    shutil.copytree(repo, c.path(_PLACE))
    c.write("/etc/apt/sources.list.d/next.list", f"deb [trusted=yes] file:{_PLACE} ./\n")
    c.run(["apt-get", "-q", "update"], check=True)
    options = ["-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "Dpkg::Options::=--force-confold"]
    return c.run(["apt-get", *options, "full-upgrade", *KERNEL], check=True, timeout=1500)
