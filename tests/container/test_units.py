# SPDX-License-Identifier: GPL-2.0-or-later
"""The units as systemd runs them: what each can and cannot do, and what restarts, reloads, hangs and shutdowns do to them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.system import units

from . import product

if TYPE_CHECKING:
    from .rig import Container, Kernel

pytestmark = pytest.mark.container

PROBE = (Path(__file__).parent / "probe.py").read_text()
# What is true in each unit; everything else that the probe tries is not. In a container no unit has capabilities to load with.
MAY: dict[str, set[str]] = {
    "knetstatd.service": {"root", "state", "run", "uevents", "systemd"},
    "build": {"root", "state", "run", "this kernel", "dkms", "key", "systemd"},
    "compile": set(),
    "load": {"root", "state", "run"},
}


@pytest.mark.parametrize("kind", MAY)
def test_what_each_unit_can_and_cannot_do(machine: Container, kind: str) -> None:
    """A score can hide a hole; a program run in the unit's place cannot."""
    c = machine
    kernel = c.kernels()[0].release
    product.install(c, ["kt-good"])
    c.path("/usr/lib/modules/1.2.3-other").mkdir()
    for name in ("mok.key", "mok.pub"):
        c.write(f"/var/lib/dkms/{name}", "a key\n", 0o600)
    c.path("/var/lib/knetstatd").mkdir(exist_ok=True)
    c.write("/usr/local/lib/probe.py", PROBE)
    argument = [kernel, "kt-good"] if kind == "compile" else [kernel]
    unit = kind if "." in kind else units.instance(kind, *argument)
    template = kind if "." in kind else f"knetstatd-{kind}@.service"
    run = f"ExecStart=\nExecStart=/usr/bin/python3 -I /usr/local/lib/probe.py {kernel} 1.2.3-other\n"
    c.write(f"/etc/systemd/system/{template}.d/probe.conf", f"[Service]\nType=oneshot\n{run}")
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["systemctl", "start", "--", unit], check=True)
    [said] = [e["MESSAGE"] for e in c.journal(unit) if e["MESSAGE"].startswith("PROBE ")]
    found = json.loads(said.removeprefix("PROBE "))
    assert {name for name, true in found.items() if true} == MAY[kind]


def test_the_daemon_sees_the_machines_sockets(machine: Container) -> None:
    """By way of PID 1: in its own network namespace there are none, and a probe there would ask nothing."""
    c = machine
    product.start(c, ["kt-good"])
    listener = "import socket, time; s = socket.create_server(('0.0.0.0', 7009)); time.sleep(600)"
    running = c.start(["python3", "-c", listener])
    product.wait("it listens", lambda: f":{7009:04X} " in c.output("cat", "/proc/net/tcp"), 20)
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "cat"]
    inside = ["nsenter", f"--target={show(c, 'MainPID')}", "--mount", "--net", *bare]
    assert f":{7009:04X} " in c.output(*inside, "/proc/1/net/tcp")
    assert len(c.output(*inside, "/proc/net/tcp").splitlines()) == 1
    running.kill()


def test_a_build_can_run_what_it_makes(machine: Container) -> None:
    """Also where systemd's own directory for it would not let it: of systemd 257 its private directories are noexec."""
    c = machine
    product.install(c, ["kt-good"])
    c.run(["mkdir", "-p", "/var/cache/private"], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=700", "tmpfs", "/var/cache/private"], check=True)
    c.write("/usr/local/lib/make-and-run", MAKE_AND_RUN, 0o755)
    run = "[Service]\nExecStart=\nExecStart=/usr/local/lib/make-and-run\n"
    c.write("/etc/systemd/system/knetstatd-compile@.service.d/probe.conf", run)
    c.run(["systemctl", "daemon-reload"], check=True)
    unit = units.instance("compile", c.kernels()[0].release, "kt-good")
    c.run(["systemctl", "start", "--", unit], check=True)
    assert "it ran" in [e["MESSAGE"] for e in c.journal(unit)]


MAKE_AND_RUN = """\
#!/bin/sh
printf '#!/bin/sh\\necho it ran\\n' >$CACHE_DIRECTORY/made
chmod 755 $CACHE_DIRECTORY/made
PATH=$CACHE_DIRECTORY:$PATH made
"""


def slow(c: Container, delay: int, **settings: object) -> Kernel:
    """The product at work on the second kernel, which is the next; each compilation takes `delay` seconds."""
    new = c.kernels()[1]
    c.add_fixture("slow", autoinstall=False, files={"delay": "0\n"})
    product.start(c, ["kt-slow"], **settings)
    product.wait_ready(c)
    wait = c.path("/usr/src/kt-slow-1.0/delay")
    before = wait.stat()
    wait.write_text(f"{delay}\n")
    os.utime(wait, ns=(before.st_atime_ns, before.st_mtime_ns))  # else it is another source, and the first kernel's turn too
    c.install_kernel(new)
    product.wait("the compilation runs", lambda: "stage-started" in product.kinds(c, kernel=new.release))
    return new


def test_a_build_survives_the_daemons_restart_and_its_death(machine: Container) -> None:
    c = machine
    new = slow(c, 8)
    c.run(["systemctl", "restart", "knetstatd"], check=True)
    assert product.check(c, new.release) == 75
    c.run(["systemctl", "kill", "--signal=KILL", "knetstatd"], check=True)
    c.run(["systemctl", "start", "knetstatd"], check=True)
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_slow")
    assert product.kinds(c, kernel=new.release).count("stage-started") == 1


def test_a_shutdown_waits_for_a_build_for_the_next_kernel(machine: Container) -> None:
    c = machine
    new = slow(c, 8)
    c.power_off(timeout=120)
    built = c.module_file(new, "kt_slow")
    assert built is not None, "published before the machine went down"
    c.boot()
    c.start_product()
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_slow")
    assert product.kinds(c, kernel=new.release).count("stage-started") == 1, "nothing was built a second time"


def test_a_shutdown_does_not_wait_for_ever(bookworm: Container) -> None:
    c = bookworm
    for kind in ("build", "compile"):
        c.write(f"/etc/systemd/system/knetstatd-{kind}@.service.d/cap.conf", "[Service]\nTimeoutStopSec=4s\n")
    c.run(["systemctl", "daemon-reload"], check=True)
    new = slow(c, 600)
    begin = time.monotonic()
    c.power_off(timeout=60)
    assert 3 < time.monotonic() - begin < 50
    assert c.module_file(new, "kt_slow") is None
    c.write("/usr/src/kt-slow-1.0/delay", "0\n")
    c.boot()
    c.start_product()
    product.wait_ready(c, new.release)


def inhibitors(c: Container) -> str:
    return c.output("systemd-inhibit", "--list", "--no-pager", "--no-legend")


def test_logind_is_asked_to_delay_a_shutdown_while_it_builds_for_the_next_kernel(machine: Container) -> None:
    c = machine
    new = slow(c, 6)
    held = product.wait("it is held", lambda: [line for line in inhibitors(c).splitlines() if line.startswith("knetstatd ")])
    assert len(held) == 1
    assert " shutdown " in held[0]
    assert new.release in held[0]
    assert held[0].rstrip().endswith("delay")
    product.wait_ready(c, new.release)
    product.wait("it is let go", lambda: "knetstatd " not in inhibitors(c), 10)


def test_a_block_is_withdrawn_when_its_time_is_over(trixie: Container) -> None:
    """There systemd refuses every shutdown while a block is held, root's too; a build that hangs must not keep a machine up."""
    c = trixie
    new = slow(c, 25, inhibit="block", inhibit_longest_seconds=8)
    product.wait("it is held", lambda: "knetstatd " in inhibitors(c))
    assert c.run(["systemctl", "poweroff"]).returncode != 0
    product.wait("it is withdrawn", lambda: "knetstatd " not in inhibitors(c), 20)
    assert product.check(c, new.release) == 75, "the build goes on"
    product.wait_ready(c, new.release)
    assert "degraded" not in product.kinds(c)


def show(c: Container, name: str) -> str:
    return c.output("systemctl", "show", "-P", name, "knetstatd.service")


def test_a_hung_loop_is_killed_and_comes_back(machine: Container) -> None:
    c = machine
    limits = "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=1s\nRestartSec=1s\n"
    c.write("/etc/systemd/system/knetstatd.service.d/watchdog.conf", limits)
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    time.sleep(5)
    assert show(c, "NRestarts") == "0", "a healthy loop feeds it"
    kernel = c.kernels()[0].release
    c.run(["systemctl", "kill", "--signal=STOP", "knetstatd"], check=True)
    c.run(["dkms", "unbuild", "kt-good/1.0", "-k", kernel], check=True)
    product.wait("it is started again", lambda: show(c, "NRestarts") != "0" and show(c, "ActiveState") == "active")
    product.wait_ready(c)
    assert "ready for" in show(c, "StatusText")


def test_a_faulty_configuration_at_the_start(machine: Container) -> None:
    c = machine
    product.install(c, ["kt-good"])
    c.write("/etc/knetstatd/knetstatd.toml", 'kernels = "newest"\n')
    assert c.run(["systemctl", "start", "knetstatd"]).returncode != 0
    time.sleep(2)
    assert show(c, "ExecMainStatus") == "78"
    assert show(c, "ActiveState") == "failed"
    assert show(c, "NRestarts") == "0"
    [said] = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
    assert said["PRIORITY"] == "3"
    for word in ("/etc/knetstatd/knetstatd.toml:1", "kernels", "'newest'", '"next+running", "all", or a number'):
        assert word in said["KNETSTATD_EVIDENCE"]


def test_a_faulty_configuration_at_a_reload(machine: Container) -> None:
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    c.write("/etc/knetstatd/knetstatd.toml.d/50.toml", "settle_second = 1\n")
    assert c.run(["systemctl", "reload", "knetstatd"]).returncode != 0
    product.wait("it is said", lambda: "config-rejected" in product.kinds(c), 10)
    assert show(c, "ActiveState") == "active"
    assert product.kinds(c).count("started") == 1
    [said] = [e for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
    fault = "/etc/knetstatd/knetstatd.toml.d/50.toml:1: 'settle_second' is not a setting; did you mean settle_seconds?"
    assert fault in said["MESSAGE"]
    old = "an old configuration is in force, the new one is faulty"
    product.wait("the status line says it", lambda: show(c, "StatusText").startswith(f"{old}: {fault}"), 10)
    assert f"{old}: {fault}" in c.output("cat", "/run/knetstatd/motd")
    c.path("/etc/knetstatd/knetstatd.toml.d/50.toml").unlink()
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    product.wait("it is taken", lambda: "config-loaded" in product.kinds(c), 10)
    product.wait("nothing is said any more", lambda: old not in show(c, "StatusText"), 10)
    assert c.run(["test", "-e", "/run/knetstatd/motd"]).returncode == 1


def test_a_configuration_that_not_everybody_may_read(machine: Container) -> None:
    """root's commands could read it, the daemon could not: both refuse it in the same words."""
    c = machine
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    for mode in (0o000, 0o600, 0o640):
        c.path("/etc/knetstatd/knetstatd.toml").chmod(mode)
        assert c.run(["systemctl", "reload", "knetstatd"]).returncode != 0
        done = c.run(["knetstatctl", "config"])
        assert (done.returncode, "run chmod a+r /etc/knetstatd/knetstatd.toml" in done.stderr) == (78, True)
        said = [e["MESSAGE"] for e in product.events(c) if e["KNETSTATD_EVENT"] == "config-rejected"]
        assert "/etc/knetstatd/knetstatd.toml: cannot be read by everybody" in said[-1]
