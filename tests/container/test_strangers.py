# SPDX-License-Identifier: GPL-2.0-or-later
"""What an ordinary user of the machine can do to the guard, and learns from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from . import product

if TYPE_CHECKING:
    from .rig import Command, Container, Result

pytestmark = pytest.mark.container

STRANGER = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups", "--"]


def stranger(c: Container, *argv: str) -> Result:
    return c.run([*STRANGER, *argv])


def start_as_stranger(c: Container, *argv: str) -> Command:
    return c.start([*STRANGER, *argv])


def test_nobody_else_can_hold_a_lock_of_ours(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.install(c, ["kt-good"])
    c.path("/run/knetstatd").mkdir(mode=0o755, exist_ok=True)
    for name in ("build.lock", "daemon.lock"):  # as they were: every user could hold them, and one does
        c.write(f"/run/knetstatd/{name}", "")
        start_as_stranger(c, "flock", "-x", f"/run/knetstatd/{name}", "sleep", "600")
    c.start_product()
    product.wait_ready(c)
    for name in ("builder.lock", "guard.lock"):
        where = c.output("find", "/run", "-name", name)
        assert where, name
        for way in ("-x", "-s"):
            assert stranger(c, "flock", "-n", way, where, "true").returncode not in (0, 1), "he may not even open it"
    assert stranger(c, "touch", "/run/knetstatd/mine").returncode


def test_an_ordinary_user_sees_who_is_at_work(machine: Container) -> None:
    c = machine
    c.add_fixture("slow", autoinstall=False, files={"delay": "12\n"})
    c.write("/var/lib/dkms/mok.key", "a key\n", 0o600)  # dkms's own, as after a first signed build
    product.start(c, ["kt-slow"])
    product.wait("it compiles", lambda: "stage-started" in product.kinds(c))
    assert stranger(c, "knetstatctl", "check", "--quiet").returncode == 75
    product.wait("an ordinary user sees it ready", lambda: stranger(c, "knetstatctl", "check", "--quiet").returncode == 0)
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    assert "The daemon does not run" in stranger(c, "knetstatctl", "status").stdout


FORGED = """\
import sys
sys.path.append("/usr/lib/python3/dist-packages")
from knetstatd.core.events import Event
from knetstatd.system.journal import Journal
Journal(quiet=True).log(Event.READY, "forged: all is well", package="kt-good", version="1.0", kernel="6.1.0-1-amd64")
"""


def test_an_entry_that_somebody_forges_is_no_history(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    assert stranger(c, "python3", "-c", FORGED).returncode == 0
    [entry] = product.wait("the journal has it", lambda: c.journal(None, "SYSLOG_IDENTIFIER=knetstatd", "_UID=4711"))
    assert (entry["MESSAGE"], entry["MESSAGE_ID"]) == ("forged: all is well", "ec45a64dcd6341f08001e5059fd2a550")
    for argv in (["history"], ["history", "--json"], ["history", "--module", "kt-good"]):
        shown = c.output("knetstatctl", *argv)
        assert "kt-good" in shown
        assert "forged" not in shown
    shown = c.output("knetstatctl", "history", "--lines", "1000")
    for kind in ("guards kt-good", "compiling in a private tree", "published and verified"):  # the daemon's, and a step's
        assert kind in shown
    assert "forged" not in c.output("journalctl", "--no-pager", "-u", "knetstatd")
