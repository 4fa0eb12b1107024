# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes machines for tests of repairs: one kernel, one package in DKMS, and dpkg's files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.core import config
from knetstatd.repair import find, repairs
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from pathlib import Path


def status(*packages: str) -> str:
    """dpkg's status of packages that are installed."""
    fields = "Status: install ok installed\nMaintainer: m\nArchitecture: all\nVersion: 1\nDescription: d\n"
    return "\n".join(f"Package: {name}\n{fields}" for name in packages)


K, GONE, OTHER = "6.1.0-9-amd64", "6.1.0-8-amd64", "6.1.0-10-amd64"
CONF = 'PACKAGE_NAME="m"\nPACKAGE_VERSION="1"\nBUILT_MODULE_NAME[0]="m"\nDEST_MODULE_LOCATION[0]="/updates"\n'
BASE = {
    "lib": "-> usr/lib",
    f"usr/lib/modules/{K}/modules.builtin": "",
    f"usr/lib/modules/{K}/modules.dep": "kernel/a.ko:\n",
    f"boot/vmlinuz-{K}": "image",
    "usr/src/m-1/dkms.conf": CONF,
    "var/lib/dkms/m/1/source": "-> /usr/src/m-1",
    "proc/self/mountinfo": "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "var/lib/dpkg/status": status("base"),
    "var/lib/dpkg/info/base.list": "/.\n/bin/sh\n",
}


def plan(root: Path, kernel: str | None = None, guarded: tuple[str, ...] = ()) -> dict[str, repairs.Repair]:
    machine = Machine(root, config.Config(modules=guarded))
    machine.refresh()
    return {found.kind: found for found in find.plan(machine, kernel)}


UNAME = "all:\n\t$(MAKE) -C /lib/modules/$(shell uname -r)/build M=$(CURDIR) modules\nobj-m := m.o\n"
HEADERS = {
    "Makefile": "", ".config": "", "Module.symvers": "", "scripts/": "",
    "include/generated/utsrelease.h": f'#define UTS_RELEASE "{K}"\n',
}  # fmt: skip
RUNS = {
    **BASE, "usr/src/m-1/dkms.conf": f"{CONF}MAKE[0]=\"make\"\n", "usr/src/m-1/Makefile": UNAME, "run/": "", "proc/": "",
    "var/lib/knetstatd/": "", "etc/dkms/": "", f"usr/lib/modules/{K}/build": "-> ../../../src/h",
    f"usr/lib/modules/{OTHER}/modules.builtin": "", f"usr/lib/modules/{OTHER}/build": "-> ../../../src/other",
    f"boot/vmlinuz-{OTHER}": "image",
}  # fmt: skip
# The headers of the kernel that does not run.
BUILDABLE = {f"usr/src/other/{name}": text.replace(K, OTHER) for name, text in HEADERS.items()}


def override(root: Path) -> tuple[Machine, repairs.Repair | None]:
    """The override for a module that compiles for the kernel that runs, where K does and OTHER does not."""
    machine = Machine(root, config.Config(modules=("m",)))
    machine.running = K
    machine.refresh()
    return machine, next((found for found in find.plan(machine, None) if found.kind == "override"), None)
