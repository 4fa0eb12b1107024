# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian roots and their kernels, made once and kept under ~/.cache/knetstatd/containers.

One directory per suite and recipe, complete or absent:

    root/       the suite: systemd, dkms, a compiler, what the product needs
    first/      an overlay on it: the oldest picked kernel with its headers, and what headers depend on
    repo/       an apt repository of every picked kernel, image and headers, with what they need beyond root/
    kernels     their releases, oldest first

A root is made under another name and renamed; a lock keeps two test runs from making it twice. A new recipe is a new
name. To start again, and get the archive's newest kernels: `rm -rf ~/.cache/knetstatd/containers`.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import archive
from .archive import Kernel, Pick

HERE = Path(__file__).parent

PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "dkms", "gcc", "libc6-dev", "make", "kmod", "python3", "python3-systemd",
    "python3-pyudev", "python3-sdnotify", "python3-zstandard", "initramfs-tools", "linux-base", "openssl", "zstd", "xz-utils",
    "procps", "util-linux",
)  # fmt: skip

# Cloud kernels: they are half the size of the others, and build the same modules.
FLAVOUR = "cloud-amd64"

PICKS: dict[str, tuple[Pick, ...]] = {
    "bookworm": (Pick("6.1", 2), Pick("6.12", 1)),
    # The 7 series is built without MODVERSIONS: there the release in vermagic decides.
    "trixie": (Pick("6.12", 2), Pick("7", 2, backports=True)),
}

# Not a new machine (that would be a first boot, and enable every unit), nothing periodic, no login prompts.
# An initramfs for no particular machine: what matters is that the hook runs, not what it packs.
CUSTOMIZE = r"""
set -eu
rm -f etc/resolv.conf etc/hostname
: >etc/fstab
echo knetstatd >etc/hostname
mkdir -p srv/repo etc/rig var/log/journal etc/initramfs-tools/conf.d etc/dpkg/dpkg.cfg.d
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        console-getty.service getty.target; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
printf 'MODULES=list\nCOMPRESS=zstd\nCOMPRESSLEVEL=1\n' >etc/initramfs-tools/conf.d/rig
echo force-unsafe-io >etc/dpkg/dpkg.cfg.d/rig
"""

APT_CONF = (
    'APT::Install-Recommends "false"',
    'Acquire::Languages "none"',
    'APT::Sandbox::User "root"',
)
DPKG_CONF = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
)


class Root(NamedTuple):
    path: Path
    suite: str

    @property
    def repo(self) -> Path:
        return self.path / "repo"

    def kernels(self) -> list[Kernel]:
        return [Kernel(release, FLAVOUR) for release in (self.path / "kernels").read_text().split()]

    def layers(self, *, first_kernel: bool) -> list[Path]:
        """What to overlay, topmost first."""
        return [self.path / "first", self.path / "root"] if first_kernel else [self.path / "root"]


def cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "knetstatd"


def root(suite: str) -> Root:
    """The cached root of `suite`, made now if it is not there: some minutes, and the only use of the network."""
    recipe = repr((PACKAGES, FLAVOUR, PICKS[suite], CUSTOMIZE, APT_CONF, DPKG_CONF)).encode()
    for part in (Path(__file__), HERE / "uname.c"):
        recipe += part.read_bytes()
    path = cache_dir() / "containers" / f"{suite}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent / f"{suite}.lock"):
        if not path.exists():
            work = path.parent / f"{suite}.new"
            remove(work)
            work.mkdir()
            print(f"making the {suite} root {path}, once", file=sys.stderr, flush=True)
            make(suite, work)
            for old in path.parent.glob(f"{suite}-*"):
                remove_unused(old)
            work.rename(path)
    return Root(path, suite)


def make(suite: str, work: Path) -> None:
    tree, repo = work / "root", work / "repo"
    bootstrap(suite, tree)
    with host_network(tree):
        kernels = choose(tree, suite)
        download(tree, suite, kernels)
    (tree / "srv/repo").rename(repo)
    (tree / "srv/repo").mkdir()
    settle_sources(tree, repo)
    install_first(work, kernels[0])
    (work / "kernels").write_text("".join(f"{kernel.release}\n" for kernel in kernels))


def bootstrap(suite: str, tree: Path) -> None:
    hook = tree.parent / "customize"
    hook.write_text(f'cd "$1"\n{CUSTOMIZE}')
    _call([
        "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--include", ",".join(PACKAGES),
        *(f"--aptopt={line}" for line in [*APT_CONF, *archive.proxy_options()]),
        *(f"--dpkgopt={line}" for line in DPKG_CONF),
        "--customize-hook", f'sh "{hook}" "$1"',
        suite, tree, *archive.sources(suite),
    ])  # fmt: skip
    hook.unlink()
    library = tree / "usr/local/lib/rig-uname.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "uname.c", tree / "tmp/uname.c")
    _call(["chroot", tree, "gcc", "-Wall", "-Werror", "-O2", "-shared", "-fPIC", "-o", "/usr/local/lib/rig-uname.so",
           "/tmp/uname.c"])  # fmt: skip
    (tree / "tmp/uname.c").unlink()


def choose(tree: Path, suite: str) -> list[Kernel]:
    """The picked kernels, oldest first: those whose image and headers are both in the archive."""
    # One part between version and flavour at most, and that a number: "-rt-cloud-amd64" is another flavour.
    wanted = re.compile(rf"linux-(image|headers)-(\d[^-]*(?:-\d[^-]*)?-{FLAVOUR})")
    there: dict[str, set[str]] = {"image": set(), "headers": set()}
    for name in _call(["chroot", tree, "apt-cache", "pkgnames", "linux-"]).split():
        if match := wanted.fullmatch(name):
            there[match[1]].add(match[2])
    both = there["image"] & there["headers"]
    releases = [release for pick in PICKS[suite] for release in archive.pick_releases(both, pick)]
    if len(releases) < 2:
        raise RuntimeError(f"{suite}: the archive has too few {FLAVOUR} kernels for {PICKS[suite]}: {releases}")
    return [Kernel(release, FLAVOUR) for release in sorted(releases, key=archive.release_key)]


def download(tree: Path, suite: str, kernels: Sequence[Kernel]) -> None:
    """Put every kernel's packages, and what they need beyond `tree`, into its /srv/repo."""
    (tree / "srv/repo/partial").mkdir()
    for kernel in kernels:
        backports = any(p.backports and archive.pick_releases([kernel.release], p) for p in PICKS[suite])
        _call([
            "chroot", tree, "apt-get", "install", "-q", "-y", "--download-only", "-o", "Dir::Cache::Archives=/srv/repo",
            *(["-t", f"{suite}-backports"] if backports else []), kernel.image, kernel.headers,
        ])  # fmt: skip
    shutil.rmtree(tree / "srv/repo/partial")
    (tree / "srv/repo/lock").unlink(missing_ok=True)


def settle_sources(tree: Path, repo: Path) -> None:
    """Leave the local repository as the only source of packages, with its lists already read."""
    packages = _call(["apt-ftparchive", "packages", "."], cwd=repo)
    (repo / "Packages").write_text(packages)
    for path in [tree / "etc/apt/sources.list", *(tree / "etc/apt/sources.list.d").glob("*")]:
        path.unlink(missing_ok=True)
    (tree / "etc/apt/sources.list.d/rig.list").write_text("deb [trusted=yes] file:/srv/repo ./\n")
    shutil.rmtree(tree / "var/lib/apt/lists")
    _call(["systemd-nspawn", *OFFLINE, "-D", tree, f"--bind-ro={repo}:/srv/repo", "apt-get", "-q", "update"])


def install_first(work: Path, kernel: Kernel) -> None:
    upper, scratch, merged = work / "first", work / "scratch", work / "merged"
    for path in (upper, scratch, merged):
        path.mkdir()
    upper.chmod(0o755)
    mount_overlay(merged, [work / "root"], upper, scratch)
    try:
        _call([
            "systemd-nspawn", *OFFLINE, "-D", merged, f"--bind-ro={work / 'repo'}:/srv/repo", "-E",
            "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "install", kernel.image, kernel.headers,
        ])  # fmt: skip
    finally:
        unmount(merged)
    merged.rmdir()
    remove(scratch)


# A command in a root, without a network; nothing on the host changes.
OFFLINE = (
    "--quiet", "--register=no", "--keep-unit", "--private-network", "--resolv-conf=off", "--timezone=off",
    "--link-journal=no", "--hostname=knetstatd",
)  # fmt: skip


@contextlib.contextmanager
def host_network(tree: Path) -> Iterator[None]:
    """For as long as it lasts, `tree` resolves names as the host does, and knows what the archive has."""
    resolv = tree / "etc/resolv.conf"
    with contextlib.suppress(FileNotFoundError):
        shutil.copy("/etc/resolv.conf", resolv)
    sources = tree / "etc/apt/sources.list"
    lines = sources.read_text() if sources.exists() else ""
    if "-backports" not in lines and (match := re.search(r"^deb (?:\[.*\] )?(\S+) (\w+) main", lines, re.MULTILINE)):
        sources.write_text(f"{lines}\ndeb {match[1]} {match[2]}-backports main\n")
    try:
        _call(["chroot", tree, "apt-get", "-q", "update"])
        yield
    finally:
        resolv.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def in_use(root: Root) -> Iterator[None]:
    """For as long as it lasts, no other test run with a newer recipe removes `root`."""
    with (root.path / "kernels").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def remove_unused(path: Path) -> None:
    with contextlib.suppress(OSError), (path / "kernels").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)


def mount_overlay(target: Path, lowers: Sequence[Path], upper: Path, work: Path) -> None:
    """Volatile: nothing waits for a disk. What is lost with the power is a test."""
    layers = ":".join(map(os.fspath, lowers))
    _call(["mount", "-t", "overlay", "overlay", "-o",
           f"volatile,lowerdir={layers},upperdir={upper},workdir={work}", target])  # fmt: skip


def unmount(target: Path) -> None:
    if subprocess.run(["umount", target], stderr=subprocess.DEVNULL, check=False).returncode:
        _call(["umount", "--lazy", target])


def remove(path: Path) -> None:
    """rm -rf that never crosses into something mounted below."""
    _call(["rm", "-rf", "--one-file-system", path])


def _call(argv: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip
    if done.returncode:
        said = textwrap.indent("\n".join((done.stdout + done.stderr).splitlines()[-30:]), "    ")
        raise RuntimeError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{said}")
    return done.stdout
