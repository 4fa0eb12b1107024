# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's kernels, by series, for the tests.

    kernel = kernels.fetch("6.12", "amd64", suite="bookworm")
    kernels.make(kernel, Path("module"), into=tmp_path, args=["W=1"])

Rules:

1. A test names a series, a flavour and a suite, never a kernel's full release:
   which one that is today, the archive says.
2. Nothing is installed. apt works on a state directory of its own, packages are
   unpacked below the cache, and the headers' absolute paths are turned there.
3. A module is compiled in a root of the suite that its kernel comes from: with
   that suite's compiler, and with a C library that its kbuild programs start on.

The cache is $KNETSTATD_CACHE, else $XDG_CACHE_HOME/knetstatd, else
~/.cache/knetstatd. It may be deleted at any time.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .container import archive

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
FLAVOURS = ("amd64", "cloud-amd64", "rt-amd64")
LISTS_MAX_AGE = 24 * 3600.0

# What apt reads for a suite: (archive, distribution).
ARCHIVES = {
    "bullseye": [("debian", "bullseye"), ("debian-security", "bullseye-security")],
    "bookworm": [("debian", "bookworm"), ("debian-security", "bookworm-security")],
    "trixie": [("debian", "trixie"), ("debian-security", "trixie-security")],
    "trixie-backports": [("debian", "trixie-backports")],
    "experimental": [("debian", "experimental")],
}
# The suite where a series is looked for, unless the test says.
HOME = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "trixie"}
# The compiler that each suite's kernels are built with.
COMPILERS = {
    "bullseye": "gcc-10,libelf1,sparse",
    "bookworm": "gcc-12,libelf1,pahole,sparse",
    "trixie": "gcc-14,libelf1t64,pahole,sparse",
}


def _mirror(name: str) -> str:
    """Where the host's own apt finds `name` ("debian" or "debian-security")."""
    main, security = archive.host_mirrors()
    found = main if name == "debian" else security
    if found is None:
        raise Unavailable(f"this machine's apt has no source for {name}")
    return found


class Unavailable(Exception):
    """The archive has no such kernel, or it cannot be asked."""


class Kernel(NamedTuple):
    series: str
    flavour: str
    suite: str
    release: str
    vmlinuz: Path
    headers: Path  # what /lib/modules/RELEASE/build points to
    modules: Path  # what is /lib/modules/RELEASE where it is installed
    tree: Path  # all its packages, unpacked


class Built(NamedTuple):
    returncode: int
    log: str
    directory: Path


def cache() -> Path:
    if named := os.environ.get("KNETSTATD_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "knetstatd"


def fetch(series: str, flavour: str = "cloud-amd64", suite: str | None = None, *, back: int = 0, boot: bool = True) -> Kernel:
    """The newest kernel of a series (back=1: the one before it), unpacked in the cache.

    boot=False: the headers alone; `vmlinuz` and `modules` may then not be there.
    """
    suite = suite or HOME.get(series, "trixie-backports")
    with locked("fetch"):
        found = releases(series, flavour, suite)
        if len(found) <= back:
            raise Unavailable(f"{suite} has {len(found)} kernel(s) {series} {flavour}, {back + 1} wanted")
        release = found[-1 - back]
        tree = cache() / "kernels" / release
        if not (tree / "headers").exists():
            unpack(suite, headers_packages(suite, release), tree, "headers")
        if boot and not (tree / "image").exists():
            unpack(suite, image_packages(suite, release), tree, "image")
        return kernel_in(tree, series, flavour, suite, release)


def releases(series: str, flavour: str, suite: str) -> list[str]:
    """Every release of a series that has both an image and headers, oldest first."""
    names = set(apt(suite, "apt-cache", "pkgnames", "linux-").split())
    # "+deb12", "-46", "~rc7": what stands between the series and the flavour has no letters-only part, so that
    # "amd64" does not take "cloud-amd64" as well.
    pattern = re.compile(rf"linux-headers-({re.escape(series)}[.~-][0-9][^-]*(?:-[0-9.]+|-[0-9a-z.]+\.[0-9]+)?-{flavour})")
    return sorted(
        (m[1] for name in names if (m := pattern.fullmatch(name)) and f"linux-image-{m[1]}" in names),
        key=natural,
    )


def sanitized(series: str, suite: str | None = None) -> Path:
    """The directory of a kernel that watches itself, made by tests/vm/debug-kernel.sh where it is not there yet."""
    suite = suite or HOME.get(series, "trixie-backports")
    package = apt(suite, "apt-cache", "show", "--no-all-versions", f"linux-source-{series}")
    home = cache() / "debug-kernel" / str(re.findall("^Version: (.+)$", package, re.MULTILINE)[0])
    with locked("debug-kernel"):
        for old in cache().glob(f"debug-kernel/{series}.*"):
            if old != home:
                shutil.rmtree(old)
        script = Path(__file__).with_name("vm") / "debug-kernel.sh"
        subprocess.run(["nice", "sh", script, series, home], env={**os.environ, **apt_environment(suite)}, check=True)
    return home


def natural(release: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", release) if part]


def headers_packages(suite: str, release: str) -> list[str]:
    depends = apt(suite, "apt-cache", "--important", "depends", f"linux-headers-{release}")
    return [f"linux-headers-{release}", *sorted(set(re.findall(r"Depends: (linux-(?:headers|kbuild)-\S+)", depends)))]


def image_packages(suite: str, release: str) -> list[str]:
    """From 7.x on, linux-image-K is empty, and its two parts are packages of their own."""
    if f"linux-binary-{release}" in apt(suite, "apt-cache", "pkgnames", "linux-binary-").split():
        return [f"linux-binary-{release}", f"linux-modules-{release}"]
    return [f"linux-image-{release}"]


def unpack(suite: str, wanted: list[str], tree: Path, stamp: str) -> None:
    """Add packages to a tree; the stamp comes last, so a tree without it is half done and done again."""
    debs = tree / "debs"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir(parents=True)
    apt(suite, "apt-get", "-q", "download", *wanted, cwd=debs)
    for deb in debs.iterdir():
        subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
    shutil.rmtree(debs)
    relocate(tree)
    (tree / stamp).touch()


def relocate(tree: Path) -> None:
    """Turn the absolute paths of Debian's headers to where they now are."""
    for makefile in tree.glob("usr/src/linux-headers-*/Makefile"):
        # The flavour's own is two lines; the common one is the kernel's and names no place.
        text = makefile.read_text()
        if len(text) < 1000 and os.fspath(tree) not in text:
            makefile.write_text(text.replace("/usr/src/", f"{tree}/usr/src/"))
    for link in [*tree.glob("lib/modules/*/*"), *tree.glob("usr/lib/modules/*/*")]:
        if link.is_symlink() and os.readlink(link).startswith("/usr/"):
            target = os.readlink(link)
            link.unlink()
            link.symlink_to(f"{tree}{target}")


def kernel_in(tree: Path, series: str, flavour: str, suite: str, release: str) -> Kernel:
    merged = (tree / "usr/lib/modules" / release).exists()
    modules = tree / ("usr/lib/modules" if merged else "lib/modules") / release
    # From 7.x on the image lies with the modules; trixie's 6.12 has its modules in /usr/lib, and its image still in /boot.
    vmlinuz = modules / "vmlinuz" if (modules / "vmlinuz").exists() else tree / "boot" / f"vmlinuz-{release}"
    return Kernel(series, flavour, suite, release, vmlinuz, tree / "usr/src" / f"linux-headers-{release}", modules, tree)


def make(kernel: Kernel, source: Path, into: Path, args: list[str], timeout: float = 900) -> Built:
    """Copy `source` into the directory `into` and run `make` there for the kernel; make's output is the log."""
    shutil.copytree(source, into, dirs_exist_ok=True)
    command = ["make", "-C", os.fspath(into), f"KDIR={kernel.headers}", *args]
    done = enter(buildroot(kernel.suite), [kernel.tree, into], command, timeout)
    return Built(done.returncode, done.stdout, into)


def make_here(headers: Path, source: Path, into: Path, args: list[str], timeout: float = 900) -> Built:
    """As `make`, with this machine's compiler and for any kernel's build directory."""
    shutil.copytree(source, into, dirs_exist_ok=True)
    done = subprocess.run(
        ["nice", "make", "-C", into, f"KDIR={headers}", *args],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
    )  # fmt: skip
    return Built(done.returncode, done.stdout, into)


def enter(root: Path, binds: list[Path], command: list[str], timeout: float) -> "subprocess.CompletedProcess[str]":
    """Run a command in a root, in which the directories `binds` lie at their own paths. Needs root."""
    for bind in binds:
        (root / bind.relative_to("/")).mkdir(parents=True, exist_ok=True)
    mounts = "".join(f'mount --bind "{bind}" "{root}{bind}" && ' for bind in binds)
    # objtool reads its own limits from /proc.
    mounts += f'mount --rbind /proc "{root}/proc" && '
    script = mounts + f'exec chroot "{root}" "$@"'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "nice", "sh", "-c", script, "sh", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )


def buildroot(suite: str) -> Path:
    """A small root with the compiler and the make of a suite."""
    base = suite.removesuffix("-backports").replace("experimental", "trixie")
    root = cache() / "roots" / base
    with locked("roots"):
        if not root.exists():
            if not shutil.which("mmdebstrap") or os.geteuid() != 0:
                raise Unavailable("a build root needs mmdebstrap, and root")
            work = root.with_name(root.name + ".new")
            shutil.rmtree(work, ignore_errors=True)
            work.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                [
                    "mmdebstrap",
                    "--variant=essential",
                    f"--keyring={KEYRING}",
                    "--quiet",
                    '--aptopt=APT::Install-Recommends "false"',
                    f"--include=make,kmod,{COMPILERS[base]}",
                    base,
                    work,
                    f"deb [signed-by={KEYRING}] {_mirror('debian')} {base} main",
                ],
                check=True,
                stdin=subprocess.DEVNULL,
            )
            work.rename(root)
    return root


def apt_environment(suite: str) -> dict[str, str]:
    """What makes apt work on the suite's own lists, and on nothing of this machine's."""
    home = cache() / "apt" / suite
    config = home / "apt.conf"
    if not config.exists():
        for directory in ("state/lists/partial", "cache/archives/partial", "parts"):
            (home / directory).mkdir(parents=True, exist_ok=True)
        (home / "status").touch()
        (home / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {_mirror(which)} {name} main\n" for which, name in ARCHIVES[suite])
        )
        config.write_text(
            f'Dir::State "{home}/state";\nDir::State::status "{home}/status";\nDir::Cache "{home}/cache";\n'
            f'Dir::Etc::sourcelist "{home}/sources.list";\nDir::Etc::sourceparts "{home}/parts";\n'
            f'Dir::Etc::preferencesparts "{home}/parts";\nAPT::Architecture "amd64";\n'
            'APT::Architectures { "amd64"; };\nAcquire::Languages "none";\nAPT::Sandbox::User "root";\n'
        )
    return {"APT_CONFIG": os.fspath(config), "LC_ALL": "C"}


def apt(suite: str, *command: str, cwd: Path | None = None) -> str:
    """Run an apt program on the suite's lists, which are brought up to date at most once a day."""
    env = {**os.environ, **apt_environment(suite)}
    stamp = cache() / "apt" / suite / "updated"
    if not stamp.exists() or time.time() - stamp.stat().st_mtime > LISTS_MAX_AGE:
        update = subprocess.run(["apt-get", "-q", "update"], env=env, capture_output=True, text=True)
        if update.returncode == 0:
            stamp.touch()
        elif not stamp.exists():
            raise Unavailable(f"apt-get update for {suite}: {update.stderr.strip()}")
    done = subprocess.run(list(command), env=env, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One test process at a time fills the cache."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
