# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages of out-of-tree modules, downloaded once per suite and kept under ~/.cache/knetstatd/foreign."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import archive, roots

# Modules that others wrote, of many kinds: network, file systems, block devices, tracing, input, crypto, laptops.
PACKAGES = (
    "acpi-call-dkms", "bbswitch-dkms", "ddcci-dkms", "dm-writeboost-dkms", "evdi-dkms", "gost-crypto-dkms",
    "iptables-netflow-dkms", "jool-dkms", "librem-ec-acpi-dkms", "lime-forensics-dkms", "lttng-modules-dkms", "nat-rtsp-dkms",
    "openafs-modules-dkms", "openrazer-driver-dkms", "openvpn-dco-dkms", "rapiddisk-dkms", "rtpengine-kernel-dkms",
    "tp-smapi-dkms", "v4l2loopback-dkms", "vpoll-dkms", "xtables-addons-dkms", "xtrx-dkms",
)  # fmt: skip


def repository(suite: str, packages: Sequence[str] = PACKAGES, component: str = "") -> Path:
    """A directory with those packages that the suite has, and what they need beyond the root; an apt repository.

    component: of the archive, beside "main": "contrib" has what depends on what is not free, and zfs."""
    key = hashlib.sha256(repr(packages).encode()).hexdigest()[:12]
    path = roots.cache_dir() / "foreign" / f"{suite}-{key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with roots.lock(path.parent / f"{suite}.lock"):
        if not (path / "Packages").exists():
            print(f"downloading modules of {suite} to {path}, once", file=sys.stderr, flush=True)
            shutil.rmtree(path, ignore_errors=True)
            _download(suite, path, packages, component)
    return path


def _download(suite: str, path: Path, packages: Sequence[str], component: str) -> None:
    work = path.parent / f"{suite}.new"
    roots.remove(work)
    upper, scratch, tree = (work / name for name in ("upper", "scratch", "tree"))
    for directory in (upper, scratch, tree):
        directory.mkdir(parents=True)
    upper.chmod(0o755)
    root = roots.root(suite)
    with roots.in_use(root):
        roots.mount_overlay(tree, [root.path / "root"], upper, scratch)
        try:
            (tree / "etc/apt/sources.list.d/rig.list").unlink()
            lines = "".join(f"{line} {component}".rstrip() + "\n" for line in archive.sources(suite))
            (tree / "etc/apt/sources.list").write_text(lines)
            (tree / "etc/apt/apt.conf.d/99proxy").write_text("".join(f"{line}\n" for line in archive.proxy_options()))
            (tree / "srv/repo/partial").mkdir(parents=True)
            with roots.host_network(tree):
                there = set(_run("chroot", tree, "apt-cache", "pkgnames").split())
                wanted = [name for name in packages if name in there]
                options = ["-q", "-y", "--download-only", "-o", "Dir::Cache::Archives=/srv/repo"]
                _run("chroot", tree, "apt-get", "install", *options, *wanted)
            made = upper / "srv/repo"
            shutil.rmtree(made / "partial")
            (made / "lock").unlink(missing_ok=True)
            index = _run("apt-ftparchive", "packages", ".", cwd=made)
            shutil.move(made, path)
        finally:
            roots.unmount(tree)
    roots.remove(work)
    (path / "Packages").write_text(index)


def _run(*argv: str | Path, cwd: Path | None = None) -> str:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
