# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian packages, built from this checkout as a distribution's builder would: in a root of the suite that has the
build dependencies of debian/control and nothing else, without a network.

The build roots are kept under ~/.cache/knetstatd/build; with other Build-Depends, another one is made.
"""

import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from . import archive, roots
from .command import HOST_ENVIRONMENT, CommandError
from .machine import Machine

CHECKOUT = Path(__file__).parents[2]
NAMES = ("knetstatd", "knetstat-dkms")
# Beside what builds: what judges.
TOOLS = "lintian"
# Held by who uses a build root; any file of it would do.
LOCK = "etc/debian_version"


class Packages(NamedTuple):
    """A build's result. lintian: what it has to say, one tag per line. log: what the build said."""

    directory: Path
    lintian: str
    log: str

    def debs(self) -> list[Path]:
        """The binary packages: knetstatd, knetstat-dkms."""
        return [next(self.directory.glob(f"{name}_*.deb")) for name in NAMES]


def version() -> str:
    """Of the newest entry in debian/changelog."""
    match = re.match(r"knetstatd \(([^)]+)\)", (CHECKOUT / "debian/changelog").read_text())
    assert match is not None
    return match[1]


def build(suite: str, directory: Path, newer: str = "") -> Packages:
    """Source and binary packages of the checkout as it is, in `directory`; with `newer` binary packages of that version,
    unseen by lintian.

    Raises CommandError where the build fails."""
    tree = source_tree(directory)
    options = "-us -uc"
    if newer:
        changelog = tree / "debian/changelog"
        before = changelog.read_text()
        changelog.write_text(f"{before.replace(version(), newer, 1)}\n{before}")
        options += " -b"
    with building(suite) as machine:
        inside = machine.root / "build"
        inside.mkdir()
        shutil.move(tree, inside)
        log = run(machine, f"cd /build/{tree.name} && dpkg-buildpackage {options} 2>&1", 600)
        # One line per tag; that it found something is for the caller to judge.
        said = "" if newer else run(machine, "cd /build && lintian --display-info --allow-root *.changes 2>&1 || :", 300)
        for result in inside.iterdir():
            if result.is_file():
                shutil.copy(result, directory)
    return Packages(directory, said, log)


def source_tree(directory: Path) -> Path:
    """The source package's tree, made in `directory`."""
    tree = directory / f"knetstatd-{version()}"
    make = ["make", "--no-print-directory", "-s", "deb-tree", f"TREE={tree}"]
    subprocess.run(make, cwd=CHECKOUT, stdin=subprocess.DEVNULL, check=True)
    return tree


@contextlib.contextmanager
def building(suite: str) -> Iterator[Machine]:
    """A machine that has the build dependencies, not booted."""
    path = root(suite)
    with (path / LOCK).open() as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        machine = Machine([path], {})
        try:
            yield machine
        finally:
            machine.close()


def run(machine: Machine, script: str, timeout: float = 120) -> str:
    """What a shell script in it says. Raises CommandError where it fails."""
    result = machine.start(["sh", "-c", script]).wait(timeout)
    if result.returncode:
        raise CommandError(f"exit {result.returncode}", result)
    return result.stdout


def root(suite: str) -> Path:
    """The cached build root of `suite`, made now if it is not there: a minute or two, and the only use of the network."""
    field = re.search(r"^Build-Depends:(.*(?:\n .*)*)", (CHECKOUT / "debian/control").read_text(), re.MULTILINE)
    assert field is not None
    depends = " ".join(field[1].split())
    recipe = repr((depends, TOOLS, roots.APT_CONF, roots.DPKG_CONF)).encode()
    path = roots.cache_dir() / "build" / f"{suite}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with roots.lock(path.parent / f"{suite}.lock"):
        if not path.exists():
            work = path.parent / f"{suite}.new"
            roots.remove(work)
            print(f"making the {suite} build root {path}, once", file=sys.stderr, flush=True)
            _make(suite, work, depends)
            for old in path.parent.glob(f"{suite}-*"):
                _remove_unused(old)
            work.rename(path)
    return path


def _make(suite: str, work: Path, depends: str) -> None:
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=buildd", f"--include={TOOLS}",
         *(f"--aptopt={line}" for line in [*roots.APT_CONF, *archive.proxy_options()]),
         *(f"--dpkgopt={line}" for line in roots.DPKG_CONF), "--dpkgopt=force-unsafe-io",
         f'--customize-hook=chroot "$1" apt-get -q -y satisfy "{depends}"',
         # Backports would hide that a suite has no such package.
         suite, work, *(line for line in archive.sources(suite) if "-backports" not in line)],
        env={**HOST_ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"no build root of {suite}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def _remove_unused(path: Path) -> None:
    try:
        with (path / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            roots.remove(path)
    except OSError:
        pass  # in use by another test run; the next one removes it
