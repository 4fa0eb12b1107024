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
    product.start(c, ["kt-slow"])
    product.wait("it compiles", lambda: "stage-started" in product.kinds(c))
    assert stranger(c, "knetstatctl", "check", "--quiet").returncode == 75
    product.wait("an ordinary user sees it ready", lambda: stranger(c, "knetstatctl", "check", "--quiet").returncode == 0)
    c.run(["systemctl", "stop", "knetstatd"], check=True)
    assert "The daemon does not run" in stranger(c, "knetstatctl", "status").stdout
