# SPDX-License-Identifier: GPL-2.0-or-later
"""Which modules a new initrd holds: our answer of an initrd that lacks one, held against the one that initramfs-tools makes.

Debian 12's copies modules with modprobe, Debian 13's with dracut-install. dkms makes no initrd, whatever REMAKE_INITRD says:
3.0.10 and 3.2.2 call that line deprecated, and do nothing else with it (/usr/sbin/dkms, read_conf).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import pytest

from . import product, rig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .rig import Container

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]

LIST, CONF, SETTINGS = "/etc/initramfs-tools/modules", "/etc/modprobe.d/x.conf", "/etc/initramfs-tools/conf.d/zz"
HOOK = "/etc/initramfs-tools/hooks/x"
FUNCTIONS = "#!/bin/sh\n. /usr/share/initramfs-tools/hook-functions\n"
# A module of the kernel's own that is a file, one that needs it, and one that is inside the kernel.
PLAIN, NEEDED, NEEDING, BUILT_IN = "loop", "xor", "btrfs", "ext4"
SECOND = f"softdep {PLAIN} pre: {NEEDED}\nsoftdep {PLAIN} pre: kt_good\n"
CHAIN = f"softdep {PLAIN} pre: {NEEDED}\nsoftdep {NEEDED} pre: kt_good\n"
CASES = {
    "nothing": {},
    "listed": {LIST: "kt_good\n"},
    "listed by an alias": {LIST: "an-alias\n", CONF: "alias an-alias kt_good\n"},
    "listed by the alias of a blacklisted one": {LIST: "an-alias\n", CONF: "alias an-alias kt_good\nblacklist kt_good\n"},
    "soft dependency, before": {LIST: f"{PLAIN}\n", CONF: f"softdep {PLAIN} pre: kt_good\n"},
    "soft dependency, after": {LIST: f"{PLAIN}\n", CONF: f"softdep {PLAIN} post: kt_good\n"},
    "soft dependency, without a place": {LIST: f"{PLAIN}\n", CONF: f"softdep {PLAIN} kt_good\n"},
    "soft dependency, second line": {LIST: f"{PLAIN}\n", CONF: SECOND},
    "soft dependency of what is needed": {LIST: f"{NEEDING}\n", CONF: f"softdep {NEEDED} pre: kt_good\n"},
    "soft dependency of a soft dependency": {LIST: f"{PLAIN}\n", CONF: CHAIN},
    "soft dependency of what is not in it": {CONF: f"softdep {PLAIN} pre: kt_good\n"},
    "soft dependency of what is built in": {LIST: f"{BUILT_IN}\n", CONF: f"softdep {BUILT_IN} pre: kt_good\n"},
    "soft dependency and a command": {LIST: f"{PLAIN}\n", CONF: f"softdep {PLAIN} pre: kt_good\ninstall {PLAIN} /bin/true\n"},
    "soft dependency in a hook": {HOOK: f"{FUNCTIONS}force_load {PLAIN}\n", CONF: f"softdep {PLAIN} pre: kt_good\n"},
    "weak dependency": {LIST: f"{PLAIN}\n", CONF: f"weakdep {PLAIN} kt_good\n"},
    "a command that loads it": {LIST: f"{PLAIN}\n", CONF: f"install {PLAIN} /sbin/modprobe kt_good\n"},
    "the root's type, nobody lists it": {"/etc/fstab": "/dev/vda / kt_good defaults 0 1\n"},
    "most": {SETTINGS: "MODULES=most\n"},
    "most, soft dependency of one": {SETTINGS: "MODULES=most\n", CONF: "softdep nvme pre: kt_good\n"},
}  # fmt: skip


class Answer(NamedTuple):
    """What our check says."""

    result: str
    fix: str
    reason: str


@pytest.fixture(scope="module", params=rig.SUITES)
def c(request: pytest.FixtureRequest) -> Iterator[Container]:
    """A machine with one good module."""
    with rig.container(request.param, boot=False) as made:
        made.add_fixture("good", autoinstall=False)
        release = made.kernels()[0].release
        product.install(made, ["kt-good"])
        initrd, conf = made.path(f"/boot/initrd.img-{release}"), made.path("/usr/src/kt-good-1.0/dkms.conf")
        conf.write_text(f'{conf.read_text()}REMAKE_INITRD="yes"\n')
        before = initrd.stat()
        made.run(["dkms", "install", "kt-good/1.0", "-k", release], check=True, timeout=300)
        assert initrd.stat() == before, "dkms makes none"
        yield made


def check(c: Container) -> Answer:
    said = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", c.kernels()[0].release]).stdout)
    found = next(check for check in said["checks"] if check["name"] == "initrd")
    return Answer(found["result"], found.get("fix", ""), found.get("reason", ""))


def make(c: Container) -> bool:
    """Makes the initrd; whether it holds the module."""
    release = c.kernels()[0].release
    c.run(["update-initramfs", "-u", "-k", release], check=True, timeout=300)
    return "/kt_good.ko" in c.output("lsinitramfs", f"/boot/initrd.img-{release}")


@pytest.mark.parametrize("case", CASES)
def test_red_is_what_a_new_initrd_would_hold(c: Container, case: str) -> None:
    """What the initrd lacks is red if a new one holds it, and only then; and the new one is green."""
    before = {path: c.path(path).read_text() for path in CASES[case] if c.path(path).exists()}
    release = c.kernels()[0].release
    # An hour older than the module, as one that apt made before the headers came.
    assert not make(c)
    c.run(["touch", "-d", "1 hour ago", f"/boot/initrd.img-{release}"], check=True)
    try:
        for path, text in CASES[case].items():
            c.write(path, text, 0o755)
        old = check(c)
        holds = make(c)
        # Until two minutes after the module it might have been in the making when that came.
        c.run(["touch", "-d", "10 minutes", f"/boot/initrd.img-{release}"], check=True)
        new = check(c)
        listed = "echo kt_good >>/etc/initramfs-tools/modules && "
        if case.startswith("the root's type"):
            assert (holds, old.fix) == (False, f"Run: {listed}update-initramfs -u -k {release}")
            c.run(["sh", "-c", old.fix.removeprefix("Run: ")], check=True, timeout=300)
            assert check(c).result == "pass"
            c.write(LIST, "")
            return
        may = case in ("listed by the alias of a blacklisted one", "soft dependency of what is built in")
        assert old.result == ("fail" if holds or may else "pass"), old
        assert old.result == "pass" or old.fix == f"Run: update-initramfs -u -k {release}"
        assert new.result == "pass", "nothing stays red that a new initrd does not cure"
    finally:
        for path in CASES[case]:
            if path in before:
                c.write(path, before[path])
            else:
                c.path(path).unlink()
