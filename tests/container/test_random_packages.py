# SPDX-License-Identifier: GPL-2.0-or-later
"""Random packages, each built by plain dkms and by us on the same machine: the same files at the same places, and the same in
DKMS's tree; and what plain dkms does not install, we do not, and say it.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from knetstatd.formats import module_file

from . import product, rig
from . import random_packages as generator

if TYPE_CHECKING:
    from pathlib import Path

    from .random_packages import Package
    from .rig import Container, Kernel

SEED = int(os.environ.get("SEED", "16"))
BATCH = 20


class Side(NamedTuple):
    """What one way of building has left. files: outside of DKMS's tree.  tree: of each package, in it.  said: of each."""

    files: dict[str, str]
    tree: dict[str, dict[str, str]]
    said: dict[str, str]
    installed: set[str]


def contents(path: Path) -> str:
    """A digest of a file: of a module unpacked and without its signature, which differs each time."""
    data = path.read_bytes()
    if ".ko" in path.name:
        data = module_file.unsigned(lzma.decompress(data) if path.suffix == ".xz" else data)
    return hashlib.sha256(data).hexdigest()[:12]


def listed(base: Path) -> dict[str, str]:
    """All that is below a directory: for each path what it is."""
    made = {}
    for where, directories, here in os.walk(base):
        for name in (*directories, *here):
            path = base.__class__(where, name)
            kind = f"-> {os.readlink(path)}" if path.is_symlink() else "directory" if path.is_dir() else contents(path)
            made[os.path.relpath(path, base)] = kind
    return made


def outside(c: Container, kernel: Kernel) -> dict[str, str]:
    """What the packages may leave outside of DKMS's tree."""
    tree = c.path(f"/lib/modules/{kernel.release}")
    made = {f"{top}/{path}": what for top in ("updates", "extra") for path, what in listed(tree / top).items()}
    made |= {
        f"kernel/{p}": contents(tree / "kernel" / p) for p in listed(tree / "kernel") if re.search(r"/k[tdo](mod|dev)_", p)
    }
    for top in ("usr/lib/firmware", "etc/modprobe.d"):
        made |= {f"{top}/{path}": what for path, what in listed(c.path(top)).items() if path.startswith("kt-")}
    return made


def in_dkms(c: Container, package: Package) -> dict[str, str]:
    made = listed(c.path(f"/var/lib/dkms/{package.name}"))
    # What dkms leaves of a build: a log with times in it, and where it was made.
    return {p: "log" if p.endswith("make.log") else what for p, what in made.items() if not re.search(r"^[^/]+/build(/|$)", p)}


def taken(c: Container, kernel: Kernel, packages: list[Package], said: dict[str, str]) -> Side:
    trees = {package.name: in_dkms(c, package) for package in packages}
    marks = {package.name for package in packages if f"kernel-{kernel.release}-x86_64" in trees[package.name]}
    # dkms 3.0 marks what OBSOLETE_BY leaves out, and 3.2 what names no module: nothing is installed of it.
    left = outside(c, kernel)
    there = {p.name for p in packages if any(re.search(rf"/k[tdo](mod|dev)_{p.name[-3:]}\w\.ko", path) for path in left)}
    return Side(left, trees, said, marks & there)


def clean(c: Container, kernel: Kernel, packages: list[Package]) -> None:
    """As if nothing had been built: registered, and no more."""
    tree = c.path(f"/lib/modules/{kernel.release}")
    for path in outside(c, kernel):
        place = c.path(path) if path.startswith(("usr", "etc")) else tree / path
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
    for package in packages:
        home = c.path(f"/var/lib/dkms/{package.name}")
        shutil.rmtree(home, ignore_errors=True)
        (home / package.version).mkdir(parents=True)
        (home / package.version / "source").symlink_to(f"/usr/src/{package.name}-{package.version}")
    c.run(["depmod", kernel.release], check=True)


PLAIN = """
while read -r name version; do
    dkms install -m "$name" -v "$version" -k "$0" >"/tmp/said/$name" 2>&1 </dev/null
    echo "exit status $?" >>"/tmp/said/$name"
done
"""


def plain(c: Container, kernel: Kernel, packages: list[Package]) -> Side:
    """What an administrator does by hand, in the order that BUILD_DEPENDS asks for."""
    clean(c, kernel, packages)
    c.run(["mkdir", "-p", "/tmp/said"], check=True)
    names = "".join(f"{package.name} {package.version}\n" for package in packages)
    c.run(["bash", "-c", PLAIN, kernel.release], stdin=names, check=True, timeout=900)
    said = {package.name: c.output("cat", f"/tmp/said/{package.name}") for package in packages}
    return taken(c, kernel, packages, said)


def ours(c: Container, kernel: Kernel, packages: list[Package]) -> tuple[Side, dict[str, dict[str, Any]]]:
    clean(c, kernel, packages)
    shutil.rmtree(c.path("/var/lib/knetstatd"), ignore_errors=True)
    c.run(["knetstatctl", "build", kernel.release], timeout=900)
    verdicts = json.loads(c.run(["knetstatctl", "explain", "--json", kernel.release]).stdout)["verdicts"]
    by_name = {verdict["package"]: verdict for verdict in verdicts}
    said = {name: f"{v['state']}: {v['reason']}" for name, v in by_name.items()}
    return taken(c, kernel, packages, said), by_name


def differences(kernel: Kernel, package: Package, one: Side, two: Side, verdict: dict[str, Any]) -> list[str]:
    """How a package came out differently."""
    wrong = []
    if (package.name in one.installed) != (package.name in two.installed):
        wrong.append(f"plain dkms {'installs' if package.name in one.installed else 'does not install'} it")
    if verdict["ready"] != (package.name in two.installed):
        wrong.append(f"it is {'' if package.name in two.installed else 'not '}installed, and {verdict['state']}")
    if package.name in one.installed & two.installed:
        wrong += compared(one.tree[package.name], two.tree[package.name])
    return wrong


def compared(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return [
        f"{p}: {one.get(p, 'not there')} under plain dkms, {two.get(p, 'not there')}"
        for p in sorted(one | two)
        if one.get(p) != two.get(p)
    ]


def compare(suite: str, count: int, seed: int, first: int = 0) -> list[str]:
    """Each difference, with the package that it is of. first: where to begin."""
    wrong = []
    with rig.container(suite) as c:
        [kernel, *_] = c.kernels()
        generator.prepare(c, kernel)
        product.install(c, ["*"])
        every = generator.packages(seed, count, kernel.release)
        for start in range(first, count, BATCH):
            packages = every[start : start + BATCH]
            for package in packages:
                for path, (text, run) in package.files.items():
                    c.write(path, text, 0o755 if run else 0o644)
            one = plain(c, kernel, packages)
            two, verdicts = ours(c, kernel, packages)
            for package in packages:
                for difference in differences(kernel, package, one, two, verdicts[package.name]):
                    wrong.append(f"{package.name}: {difference}; {', '.join(package.note)}")
                    print(f"{wrong[-1]}\n{''.join(generator.texts(package))}--- plain\n{one.said[package.name]}", flush=True)
                    print(f"--- ours\n{two.said[package.name]}\n{verdicts[package.name]['last_failure']}\n", flush=True)
            elsewhere = compared(one.files, two.files)
            wrong += elsewhere
            print(
                *elsewhere,
                f"{start + len(packages)} packages, {len(one.installed)} of {len(packages)} installed",
                sep="\n",
                flush=True,
            )
            for package in packages:
                shutil.rmtree(c.path(f"/var/lib/dkms/{package.name}"))
                for path in package.files:
                    c.path(path).unlink()
    return wrong


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_five_hundred_packages(suite: str) -> None:
    """SEED=N gives others."""
    assert compare(suite, 500, SEED) == []


def test_a_few_packages(suite: str) -> None:
    assert compare(suite, 12, SEED + 1) == []
