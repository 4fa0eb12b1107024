# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages whose dkms.conf does more than make: scripts that copy firmware or write logs, and one that needs another's symbols.

They are what zfs, lustre and drivers with firmware do, each as small as it can be.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import product

if TYPE_CHECKING:
    from .rig import Container

CONF = """\
PACKAGE_NAME="{name}"
PACKAGE_VERSION="1.0"
MAKE[0]="make -C ${{kernel_source_dir}} M=${{dkms_tree}}/${{PACKAGE_NAME}}/${{PACKAGE_VERSION}}/build {extra} modules"
CLEAN="true"
BUILT_MODULE_NAME[0]="{name}"
DEST_MODULE_LOCATION[0]="/updates"
{more}
"""
CODE = """\
{head}
#include <linux/module.h>
static int __init m_init(void) {{ return {value}; }}
static void __exit m_exit(void) {{ }}
module_init(m_init);
module_exit(m_exit);
MODULE_LICENSE("GPL");
{tail}
"""
ALL = ("fwcopy", "lustlike", "prebld", "zfslike")
FIRMWARE = "#!/bin/sh\nset -e\nmkdir -p {place}\ncp acme.bin {place}/\n"
PREPARE = '#!/bin/sh\nset -e\ndate >{place}/acme-driver.log\necho "#define X 0" >gen.h\n'


def add(
    c: Container, name: str, *, head: str = "", value: str = "0", tail: str = "", extra: str = "", more: str = "",
    **scripts: str,
) -> None:  # fmt: skip
    """Registers a package. scripts: files beside its source, by name without .sh."""
    source = f"/usr/src/{name}-1.0"
    c.path(source).mkdir()
    c.write(f"{source}/dkms.conf", CONF.format(name=name, extra=extra, more=more))
    c.write(f"{source}/Makefile", f"obj-m += {name}.o\n")
    c.write(f"{source}/{name}.c", CODE.format(head=head, value=value, tail=tail))
    for script, text in scripts.items():
        c.write(f"{source}/{script}.sh", text, 0o755)
    c.run(["dkms", "add", f"{name}/1.0"], check=True)


def test_packages_that_do_more_than_make(machine: Container) -> None:
    c = machine
    release = c.kernels()[0].release
    build = f"/var/lib/dkms/zfslike/1.0/{release}/x86_64"
    symbols = "/var/lib/dkms/zfslike/1.0/${kernelver}/${arch}/Module.symvers"
    post = 'POST_BUILD="post.sh ${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/${kernelver}/${arch}"'
    c.path("/usr/lib/firmware").mkdir(exist_ok=True)
    add(c, "fwcopy", more='POST_INSTALL="fw.sh"', fw=FIRMWARE.format(place="/lib/firmware/acme"))
    c.write("/usr/src/fwcopy-1.0/acme.bin", "data\n")
    # By its name it would be built before the one that it needs.
    user = {"head": "int zl_answer(void);", "value": "zl_answer() - 42"}
    add(c, "lustlike", **user, extra=f"KBUILD_EXTRA_SYMBOLS={symbols}", more='BUILD_DEPENDS[0]="zfslike"')
    add(c, "prebld", head='#include "gen.h"', value="X", more='PRE_BUILD="pb.sh"', pb=PREPARE.format(place="/var/log"))
    exported = "int zl_answer(void); int zl_answer(void) { return 42; }\nEXPORT_SYMBOL(zl_answer);"
    add(c, "zfslike", tail=exported, more=post, post='#!/bin/sh\ncp -v Module.symvers "$1/"\n')
    product.start(c, ALL)
    product.wait("all of them have a verdict", lambda: product.check(c, "running") != 75, 240)
    said = {v["package"]: (v["state"], v["reason"]) for v in product.verdicts(c, "running")}
    assert said == dict.fromkeys(ALL, ("ready", ""))
    assert "zl_answer" in c.path(f"{build}/Module.symvers").read_text()
    assert c.path("/usr/lib/firmware/acme/acme.bin").read_text() == "data\n"
    assert not c.path("/var/log/acme-driver.log").exists(), "what a build logs goes with its unit"
    staged = [e["KNETSTATD_PACKAGE"] for e in product.events(c, kernel=release) if e["KNETSTATD_EVENT"] == "staged"]
    assert staged.index("zfslike") < staged.index("lustlike")

    # Where nobody is allowed to write: the module is there, as under dkms, and the rest is said.
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    c.path("/opt/here").mkdir(parents=True)
    c.write("/usr/src/fwcopy-1.0/fw.sh", FIRMWARE.format(place="/opt/here/acme"), 0o755)
    c.write("/usr/src/prebld-1.0/pb.sh", PREPARE.format(place="/opt/here"), 0o755)
    c.start_product()
    product.wait("both are told of", lambda: "POST_" in reason(c, "fwcopy") and "PRE_" in reason(c, "prebld"), 240)
    [firmware] = [v for v in product.verdicts(c, "running") if v["package"] == "fwcopy"]
    assert firmware["ready"]
    assert "POST_INSTALL of dkms.conf was not allowed to write" in firmware["reason"]
    assert "/opt/here/acme" in firmware["reason"]
    assert "ReadWritePaths=/opt/here" in firmware["fix"]
    explained = json.loads(c.output("knetstatctl", "explain", "--json", "running"))["verdicts"]
    [failure] = [v["last_failure"] for v in explained if v["package"] == "prebld"]
    assert failure["kind"] == "dkms-conf"
    assert failure["reason"].startswith("PRE_BUILD of dkms.conf failed: ")
    assert "/opt/here/acme-driver.log" in failure["reason"]
    # What it says to run does it.
    argv = firmware["fix"].removeprefix("Run: ").partition(";")[0].split()
    c.run(argv, check=True)
    assert c.path("/opt/here/acme/acme.bin").read_text() == "data\n"
    product.wait("it is not told any more", lambda: not reason(c, "fwcopy"))


def reason(c: Container, package: str) -> str:
    """What the verdict of a package says, on the running kernel."""
    [said] = [v["reason"] for v in product.verdicts(c, "running") if v["package"] == package]
    return str(said)
