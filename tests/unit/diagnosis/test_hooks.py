# SPDX-License-Identifier: GPL-2.0-or-later
"""What dkms.conf's scripts said, in what dkms 3.0.10 prints and in what 3.2.2 writes into make.log; which of them failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.core.model import Kind
from knetstatd.diagnosis import build_log, hooks
from knetstatd.diagnosis.hooks import Named

if TYPE_CHECKING:
    from pathlib import Path

DENIED = "pb.sh: 3: cannot create /var/lib/acme/driver.log: Read-only file system"
# dkms 3.0.10, which goes on; the log is make's.
PRINTED = f"""Sign command: /x
Binary /x not found, modules won't be signed

Running the pre_build script:
preparing
{DENIED}

Building module:
Cleaning build area...
make -j2 KERNELRELEASE=6.1 ...(bad exit status: 2)
"""
MAKE = "/x/tree/prebld/1.0/build/pre_bld.c:1:10: fatal error: gen.h: No such file or directory\n"
# dkms 3.2.2, which ends.
LOGGED = f"""DKMS (dkms-3.2.2) make.log for prebld/1.0 for kernel 6.12 (x86_64)
Mon Nov 30 08:00:00 UTC 2026

Running the pre_build script
# command: cd /x/tree/prebld/1.0/build/ && /x/tree/prebld/1.0/build/pb.sh
preparing
{DENIED}

# exit code: 2
# elapsed time: 00:00:00
----------------------------------------------------------------
"""


@pytest.mark.parametrize(("log", "output", "code"), [(MAKE, PRINTED, 10), (LOGGED, "Running the pre_build script...", 2)])
def test_a_pre_build_that_failed_is_the_cause(log: str, output: str, code: int) -> None:
    cause = build_log.classify(log, output, code)
    assert (cause.kind, cause.reason) == (Kind.CONF, f"PRE_BUILD of dkms.conf failed: {DENIED}")
    assert cause.evidence == ("preparing", DENIED)
    assert "TemporaryFileSystem=/var/lib/acme:mode=1777" in cause.fix


def test_a_pre_build_that_went_on_is_not() -> None:
    for said in ("checking for foo... not found\nconfigured", f"{DENIED}\nwithout a log, then", ""):
        output = f"\nRunning the pre_build script:\n{said}\n\nBuilding module:\n"
        assert build_log.classify(MAKE, output, 10).kind == Kind.API
    assert build_log.classify(LOGGED.replace("code: 2", "code: 0") + MAKE, "", 10).kind == Kind.API
    output = "\nRunning the pre_build script:\ncp: error writing 'x': No space left on device\n\nBuilding module:\n"
    assert build_log.classify("", output, 10).kind == Kind.DISK


def test_a_pre_build_that_says_nothing() -> None:
    log = "\nRunning the pre_build script\n# command: x\n\n# exit code: 3\n"
    assert build_log.classify(log, "", 3).reason == "PRE_BUILD of dkms.conf failed: exit status 3"
    assert build_log.classify(log, "", 3).fix == "Correct the script that PRE_BUILD names in dkms.conf"


INSTALL = """
demo.ko.xz:

Running the pre_install script:
good
 - Original module
   - No original module exists within this kernel
 - Installation
   - Installing to /lib/modules/6.1/updates/dkms/

Running the post_install script:
mkdir: cannot create directory '/opt/acme': Read-only file system
depmod...
"""


def test_each_script_has_its_lines() -> None:
    before, after = hooks.ran("", INSTALL)
    assert (before.name, before.lines, before.denied, before.place, before.failed) == ("PRE_INSTALL", ("good",), "", "", False)
    assert (after.name, after.place, after.failed) == ("POST_INSTALL", "/opt", True)
    assert after.denied == "mkdir: cannot create directory '/opt/acme': Read-only file system"
    [post] = hooks.ran("\nRunning the post_build script\n# command: x\ncp: x: Permission denied\n\n# exit code: 1\n", "")
    assert (post.name, post.place, post.code) == ("POST_BUILD", "", 1)
    assert hooks.ran("", "Running the post_add script:\nx\n") == ()


@pytest.mark.parametrize(
    ("line", "writes"),
    [
        ("cp Module.symvers /var/lib/dkms/m/1/", True),
        ("date > /var/lib/dkms/m/log", True),
        ("tree=/var/lib/dkms", True),
        ("export tree='/var/lib/dkms/m'", True),
        ('mkdir -p "/var/lib/dkms/m"', True),
        ("# cp Module.symvers /var/lib/dkms/m/1/", False),
        ("cat /var/lib/dkms/m/1/log", False),
        ('cp x "${1:-/var/lib/dkms}/m"', False),
        ("tree=${1:-/var/lib/dkms}", False),
        ("cp x /var/lib/dkms-x /srv/var/lib/dkms", False),
        ('cp x "$dkms_tree/m"', False),
    ],
)
def test_scripts_that_write_to_dkmss_tree_by_its_name(tmp_path: Path, line: str, writes: bool) -> None:
    (tmp_path / "dkms.conf").write_text('PACKAGE_NAME="m"\nPOST_BUILD="post.sh ${dkms_tree} x"\n')
    (tmp_path / "post.sh").write_text(f"#!/bin/sh\n{line}\n{line}\n")
    assert hooks.writes_by_name(tmp_path, "/var/lib/dkms") == ((Named("POST_BUILD", "post.sh", 2),) if writes else ())
    assert hooks.writes_by_name(tmp_path, "/srv/dkms") == ()


def test_what_dkms_conf_passes_to_a_script(tmp_path: Path) -> None:
    (tmp_path / "dkms.conf").write_text("PRE_BUILD='a.sh /var/lib/dkms/m'\nPOST_BUILD=../x\nPOST_INSTALL=\"b /var/lib/dkms\"\n")
    assert hooks.writes_by_name(tmp_path, "/var/lib/dkms") == (Named("PRE_BUILD", "dkms.conf", 1),)
    assert hooks.writes_by_name(tmp_path / "nowhere", "/var/lib/dkms") == ()
