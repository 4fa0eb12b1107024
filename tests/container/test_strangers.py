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


# Holds a file of its own by the number of one of ours: in /dev/shm numbers are given one after the other.
NAMESAKE = """\
import fcntl, os, sys, time
for number in map(int, sys.argv[1:]):
    for i in range(100_000):
        path = f"/dev/shm/{os.getpid()}.{i}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        if os.fstat(fd).st_ino == number:
            fcntl.flock(fd, fcntl.LOCK_EX)
            break
        os.close(fd)
        os.unlink(path)
print("holds", sys.argv[1:], flush=True)
time.sleep(600)
"""
# Fills /tmp whenever a compiler is at work.
FILLER = """\
import os, time
while True:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm") as f:
                at_work = f.read().strip() in ("make", "cc1")
        except OSError:
            continue
        if at_work:
            break
    else:
        time.sleep(0.02)
        continue
    with open("/tmp/fill", "ab", buffering=0) as f:
        try:
            while f.write(bytes(1 << 20)):
                pass
        except OSError:
            pass
    time.sleep(1)
    os.truncate("/tmp/fill", 0)
"""


def test_whatever_a_user_pretends_the_guard_goes_on(machine: Container) -> None:
    """A dkms of his own, locks that look like ours, a /tmp that is full while it compiles."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    c.run(["mount", "-o", "remount,size=64M", "/tmp"], check=True)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    c.write("/srv/dkms", "#!/bin/bash\nsleep 600\n", 0o755)
    locks = c.output("stat", "-c", "%i", "/run/knetstatd-build/builder.lock", "/run/knetstatd/guard.lock").split()
    start_as_stranger(c, "/srv/dkms", "install", "kt-good/1.0")
    holder = start_as_stranger(c, "python3", "-uc", NAMESAKE, *locks)
    product.wait("he holds them", lambda: "holds" in holder.output())
    start_as_stranger(c, "python3", "-uc", FILLER)
    assert stranger(c, "knetstatctl", "check", "--quiet").returncode == 0
    c.write("/usr/src/kt-good-1.0/own.h", "/* another source */\n")
    c.run(["sh", "-c", "rm -r /lib/modules/*/updates/dkms"], check=True)
    product.wait("it is red", lambda: product.check(c) != 0, 20)
    product.wait_ready(c)
    assert product.kinds(c).count("staged") == 2
    assert not {"failed", "gave-up"} & set(product.kinds(c)), product.kinds(c)
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    assert "The daemon does not run" in stranger(c, "knetstatctl", "status").stdout, "the lock that he holds is another's"
