# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that others wrote: Debian's *-dkms packages under `modules = ["*"]`, each verdict held against other tools."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from . import foreign, product

if TYPE_CHECKING:
    from .rig import Container, Kernel

# Causes that say nothing of the module, and must not be what a failure of a module on a whole machine is called.
VAGUE = {"interrupted", "foreign-dkms", "disk", "memory", "read-only", "publish", "timeout", "during-transaction", "dkms-tree"}


def install(c: Container) -> list[str]:
    """Installs the suite's packages one by one, with dkms kept from building; returns the DKMS names of the modules."""
    shutil.copytree(foreign.repository(c.suite), c.path("/srv/foreign"))
    c.write("/etc/apt/sources.list.d/foreign.list", "deb [trusted=yes] file:/srv/foreign ./\n")
    c.write("/etc/dkms/no-autoinstall", "")
    c.run(["apt-get", "-q", "update"], check=True)
    names = [p for p in foreign.PACKAGES if list(c.path("/srv/foreign").glob(f"{p}_*.deb"))]
    # Their own postinst builds for the running kernel; what does not compile would leave the package half-configured.
    add = '#!/bin/sh\n[ -e "/var/lib/dkms/$1/$2" ] || exec dkms add -m "$1" -v "$2"\n'
    c.write("/usr/lib/dkms/common.postinst", add, 0o755)
    c.run(["apt-get", "-q", "-y", "install", *names], check=True, timeout=900)
    return sorted(p.name for p in c.path("/var/lib/dkms").iterdir() if p.is_dir())


def judge(c: Container, kernel: Kernel, verdict: dict[str, Any], made: list[str]) -> str:
    """What is wrong with a verdict, by modinfo, modprobe, depmod and a plain dkms build; "" where it is right."""
    module, version = verdict["package"], verdict["version"]
    if verdict["ready"]:
        if not made:
            return "ready without a file"
        # What depmod says of all modules of the kernel together: some need what others of the same package export.
        symvers = f"/usr/src/linux-headers-{kernel.release}/Module.symvers"
        listed = c.run(["depmod", "-naeE", symvers, kernel.release], check=True).stderr
        for name in made:
            if c.vermagic(kernel, name).split()[0] != kernel.release:
                return f"ready, and {name} is for {c.vermagic(kernel, name)}"
            if bad := [line for line in listed.splitlines() if f"/{name}.ko" in line]:
                return f"ready, and depmod: {bad[0]}"
            if (done := c.run(["modprobe", "-S", kernel.release, "--show-depends", name])).returncode:
                return f"ready, and modprobe: {done.stderr}"
        return ""
    failure = verdict["last_failure"]
    if failure is None and verdict["why"] != "source-broken":
        return f"not ready, and no failure: {verdict['state']}"
    if c.run(["dkms", "build", "-m", module, "-v", version, "-k", kernel.release], timeout=1200).returncode == 0:
        return f"called a failure ({(failure or verdict)['reason']}), and plain dkms builds it"
    if failure and (failure["kind"] in VAGUE or not failure["evidence"] or "dkms exit code" in failure["reason"]):
        return f"vague: {failure['kind']}: {failure['reason']}"
    return ""


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_modules_that_others_wrote(machine: Container) -> None:
    """`make container-slow`; docs/modules.md has the results of one run."""
    c = machine
    kernels = [c.kernels()[0], c.kernels()[-1]]
    c.install_kernel(kernels[1])
    modules = install(c)
    assert len(modules) >= 12, modules
    product.install(c, ["*"])
    wrong, rows = [], []
    for kernel in kernels:
        c.run(["knetstatctl", "build", kernel.release], timeout=5400)
        verdicts = json.loads(c.output("knetstatctl", "explain", "--json", kernel.release))["verdicts"]
        assert sorted(v["package"] for v in verdicts) == modules
        for verdict in verdicts:
            built = c.path(f"/var/lib/dkms/{verdict['package']}/{verdict['version']}/{kernel.release}")
            made = sorted({p.name.partition(".ko")[0] for p in built.rglob("*.ko*")}) if verdict["ready"] else []
            fault = judge(c, kernel, verdict, made)
            wrong += [f"{verdict['package']} on {kernel.release}: {fault}"] * bool(fault)
            failure = verdict["last_failure"] or {}
            why = f"{failure['kind']}: {failure['reason']}" if failure else verdict["reason"]
            name = f"{verdict['package']} {verdict['version']}"
            rows.append(f"| {name} | {kernel.series} | {verdict['state']} | {len(made) or ''} | {why} |")
    print("\n".join(rows))
    assert not wrong, "\n".join(wrong)
