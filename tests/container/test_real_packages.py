# SPDX-License-Identifier: GPL-2.0-or-later
"""The DKMS packages that people run, on the kernel that they run: built by plain dkms and by us, side by side.

docs/modules.md has the results of one run. `test_foreign_modules.py` has many more packages, on the small kernels.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from knetstatd.formats import module_file

from . import foreign, product
from .archive import Kernel

if TYPE_CHECKING:
    from .rig import Container

QUICK = (
    "broadcom-sta-dkms", "ddcci-dkms", "evdi-dkms", "mstflint-dkms", "openrazer-driver-dkms", "r8125-dkms", "r8168-dkms",
    "v4l2loopback-dkms", "vhba-dkms", "xtables-addons-dkms",
)  # fmt: skip
LONG = ("nvidia-kernel-dkms", "zfs-dkms")
GENERIC = ("linux-image-amd64", "linux-headers-amd64")
COMPONENTS = "contrib non-free non-free-firmware"
# Beside the compiling we copy, prove and publish: seconds, more on a busy machine, which count where compiling takes seconds.
RATIO, MORE = 1.2, 30.0


class Made(NamedTuple):
    """What a build left. files: each installed module, by its place below the kernel's directory, and what it says."""

    code: int
    seconds: float
    files: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]]


def install(c: Container, packages: tuple[str, ...]) -> tuple[Kernel, list[tuple[str, str]]]:
    """Installs the suite's usual kernel and those packages that it has, with dkms kept from building.

    Returns the kernel, and dkms's names and versions.
    """
    shutil.copytree(foreign.repository(c.suite, (*GENERIC, *packages), COMPONENTS), c.path("/srv/real"))
    c.write("/etc/apt/sources.list.d/real.list", "deb [trusted=yes] file:/srv/real ./\n")
    c.write("/etc/dkms/no-autoinstall", "")
    c.run(["apt-get", "-q", "update"], check=True)
    add = '#!/bin/sh\n[ -e "/var/lib/dkms/$1/$2" ] || exec dkms add -m "$1" -v "$2"\n'
    c.write("/usr/lib/dkms/common.postinst", add, 0o755)
    names = [p for p in (*GENERIC, *packages) if list(c.path("/srv/real").glob(f"{p}_*.deb"))]
    c.run(["apt-get", "-q", "-y", "install", *names], check=True, timeout=1800)
    depends = c.output("dpkg-query", "-W", "-f=${Depends}", GENERIC[1])
    release = re.search(r"linux-headers-(\S+-amd64)", depends)
    assert release is not None, depends
    added = re.findall(r"^([^/]+)/([^,:]+)", c.output("dkms", "status"), re.MULTILINE)
    return Kernel(release[1], "amd64"), sorted(set(added))


def made(c: Container, kernel: Kernel, argv: list[str], timeout: float) -> Made:
    """Runs a build that begins with nothing installed, and takes away what it has installed."""
    begin = time.monotonic()
    code = c.run(argv, timeout=timeout).returncode
    seconds = time.monotonic() - begin
    top, files = c.path(f"/lib/modules/{kernel.release}"), {}
    for path in sorted(top.glob("updates/**/*.ko*")):
        module = module_file.from_path(path, formed=True)
        assert not module.form, (path, module.form)
        files[f"{path.relative_to(top)}"] = (module.vermagic, tuple(sorted(module.undefined)), tuple(sorted(module.exports)))
    return Made(code, seconds, files)


def compared(c: Container, kernel: Kernel, package: str, version: str, timeout: float) -> tuple[str, str]:
    """A row for docs/modules.md, and what is wrong, "" for nothing."""
    which = ["-m", package, "-v", version, "-k", kernel.release]
    plain = made(c, kernel, ["dkms", "install", *which], timeout)
    c.run(["dkms", "unbuild", *which], timeout=300)
    c.write(
        "/etc/knetstatd/knetstatd.toml", f'modules = ["{package}"]\nkernels = "all"\nsettle_seconds = 1.0\nrehearse = "never"\n'
    )
    ours = made(c, kernel, ["knetstatctl", "build", kernel.release], timeout)
    if c.run(["knetstatctl", "check", "--quiet", kernel.release]).returncode:  # r8125 has a hook for the initrd
        c.run(["update-initramfs", "-u", "-k", kernel.release], check=True, timeout=300)
    explained = json.loads(c.run(["knetstatctl", "explain", "--json", kernel.release]).stdout)
    verdict: dict[str, Any] = explained["verdicts"][0]
    c.run(["dkms", "unbuild", *which], timeout=300)
    failure = verdict["last_failure"] or {}
    why = f"{failure['kind']}: {failure['reason']}" if failure else verdict["state"]
    if not failure and not verdict["ready"]:
        why += f": {verdict['reason']}"
    ratio = f"{ours.seconds / plain.seconds:.2f}"
    row = f"| {package} {version} | {len(ours.files) or '-'} | {why} | {plain.seconds:.0f} s | {ours.seconds:.0f} s | {ratio} |"
    wrong = []
    if plain.files != ours.files:
        wrong.append(f"plain dkms installed {plain.files}, we {ours.files}")
    if verdict["ready"] is not bool(plain.files):
        wrong.append(f"ready is {verdict['ready']}, and plain dkms ended with {plain.code}")
    if plain.files and ours.seconds > RATIO * plain.seconds + MORE:
        wrong.append(f"{ours.seconds:.0f} s, and plain dkms {plain.seconds:.0f} s")
    return row, "; ".join(f"{package}: {text}" for text in wrong)


@pytest.mark.slow
@pytest.mark.timeout(14400)
@pytest.mark.parametrize("packages", [QUICK, LONG], ids=["quick", "long"])
def test_the_packages_that_people_run(machine: Container, packages: tuple[str, ...]) -> None:
    c = machine
    kernel, added = install(c, packages)
    assert len(added) >= len(packages) // 2, added
    product.install(c, [name for name, _ in added])
    results = []
    for package, version in added:
        results.append(compared(c, kernel, package, version, 7200))
        print(results[-1][0], flush=True)
    wrong = [fault for _, fault in results if fault]
    assert not wrong, "\n".join(wrong)
