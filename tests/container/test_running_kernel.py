# SPDX-License-Identifier: GPL-2.0-or-later
"""Build files that ask for the running kernel, in every way that is known: each yields a module for the kernel of the build,
with the units and by hand without systemd, or is named with its line.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from . import product, rig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .rig import Container, Kernel

CONF = """\
PACKAGE_NAME="{name}"
PACKAGE_VERSION="1.0"
MAKE[0]="make"
CLEAN="true"
BUILT_MODULE_NAME[0]="{module}"
DEST_MODULE_LOCATION[0]="/updates"
"""
CODE = '#include <linux/module.h>\nMODULE_LICENSE("GPL");\nMODULE_DESCRIPTION("test");\n'
BY_HAND = "obj-m := {module}.o\nKVER := $(shell {asks})\nall:\n\t$(MAKE) -C {directory}$(KVER)/build M=$(CURDIR) modules\n"
IN_C = (
    "#include <stdio.h>\n#include <sys/utsname.h>\nint main(void)\n{\n\tstruct utsname u;\n\tuname(&u); puts(u.release);\n}\n"
)
PYTHON = 'python3 -c "import platform; print(platform.release())"'
ASKS = {
    "platform": PYTHON,
    "os-uname": 'python3 -c "import os; print(os.uname().release)"',
    "proc-version": "cut -d' ' -f3 /proc/version",
    "osrelease": "cat /proc/sys/kernel/osrelease",
    "ls": "ls /lib/modules | tail -n 1",
    "ls-first": "ls /usr/lib/modules/ | head -n 1",
    "find": "find /lib/modules -mindepth 1 -maxdepth 1 -type d -printf '%f\\n' | sort -V | tail -n 1",
    "sysctl": "sysctl -n kernel.osrelease",
    "perl": "perl -MPOSIX -e 'print((POSIX::uname())[2])'",
    "in-c": "gcc -o release release.c && ./release",
    "uname": "uname -r",
    "uname-by-path": "/bin/uname -r",
}
# By these it looks where nobody can lead it, or asks whom it cannot.
HOSTNAMECTL = "hostnamectl | sed -n 's/ *Kernel: Linux *//p'"
ELSEWHERE = {"headers": (PYTHON, "/usr/src/linux-headers-"), "hostnamectl": (HOSTNAMECTL, "/lib/modules/")}


def add(c: Container, name: str, asks: str, directory: str = "/lib/modules/", more: Mapping[str, str] | None = None) -> None:
    module = f"ask_{name.replace('-', '_')}"
    text = BY_HAND.format(module=module, asks=asks, directory=directory)
    files = {"Makefile": text.replace("$(KVER)/build", "$(KVER)") if "headers" in directory else text, f"{module}.c": CODE}
    files["dkms.conf"] = CONF.format(name=f"ask-{name}", module=module)
    for path, content in {**files, **(more or {})}.items():
        c.write(f"/usr/src/ask-{name}-1.0/{path}", content)
    c.run(["dkms", "add", f"ask-{name}/1.0"], check=True)


def states(c: Container, kernel: Kernel) -> dict[str, Any]:
    said = json.loads(c.run(["knetstatctl", "explain", "--json", kernel.release]).stdout)["verdicts"]
    return {v["package"].removeprefix("ask-"): v for v in said}


@pytest.mark.parametrize("booted", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["units", "by-hand"])
def test_a_build_that_asks_for_the_running_kernel_gets_the_target(suite: str, booted: bool) -> None:
    with rig.container(suite, boot=booted) as c:
        running, target = c.kernels()[0], c.kernels()[-1]
        c.install_kernel(target)
        for name, asks in ASKS.items():
            add(c, name, asks, more={"release.c": IN_C} if name == "in-c" else None)
        for name, (asks, directory) in ELSEWHERE.items():
            add(c, name, asks, directory)
        product.install(c, ["*"])
        c.run(["knetstatctl", "build", target.release], timeout=600)
        said = states(c, target)
        assert {name: (said[name]["state"], said[name]["last_failure"]) for name in ASKS} == dict.fromkeys(
            ASKS, ("ready", None)
        )
        for name in ASKS:
            product.right_module(c, target, f"ask_{name.replace('-', '_')}")
        failure = said["headers"]["last_failure"]
        assert (failure["kind"], said["headers"]["state"]) == ("wrong-kernel", "failed")
        assert running.release in failure["reason"]
        assert "will not load" not in failure["reason"]
        assert failure["fix"] == "Makefile line 2 asks for the running kernel; set KVER in dkms.conf's MAKE"
        assert "platform.release()" in failure["evidence"][0]
        asked = said["hostnamectl"]["last_failure"]
        assert (asked["kind"], asked["evidence"][0][:11]) == ("kernel-directory", "Makefile:2:")
        assert asked["fix"] == failure["fix"]
        # Nothing of it is to be seen outside.
        assert c.output("ls", "/lib/modules").split() == sorted([running.release, target.release])
        assert target.release not in c.output("cat", "/proc/version", "/proc/sys/kernel/osrelease")
