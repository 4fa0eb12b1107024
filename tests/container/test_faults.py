# SPDX-License-Identifier: GPL-2.0-or-later
"""Killed at any instant, starved of events, raced by the distribution's hook: it converges, and disturbs nobody."""

from __future__ import annotations

import random
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from . import product

if TYPE_CHECKING:
    from .rig import Container, Kernel

pytestmark = pytest.mark.container

# What may die: the daemon, our builder, the program that compiles, dkms, make, and the compiler below it.
VICTIMS = ("[/]usr/sbin/knetstatd", "[k]netstatctl build", "[k]netstatctl compile", "dkms", "make", "cc1")


def _undo(c: Container, kernel: Kernel, module: str) -> None:
    """As if the module had never been built for this kernel; done behind the daemon's back."""
    c.run(["dkms", "unbuild", f"{module}/1.0", "-k", kernel.release], timeout=60)
    shutil.rmtree(c.path(f"/var/lib/dkms/{module}/1.0/{kernel.release}"), ignore_errors=True)
    shutil.rmtree(c.path("/var/lib/knetstatd/kernels"), ignore_errors=True)


def _verified(c: Container, kernel: Kernel) -> None:
    product.wait_ready(c, "running", 120)
    product.right_module(c, kernel, "kt_good")
    assert c.run(["modprobe", "-S", kernel.release, "--show-depends", "kt_good"]).returncode == 0
    assert f"kt-good/1.0, {kernel.release}, x86_64: installed" in c.output("dkms", "status")


def _kill_at_random(c: Container, times: int, seed: int) -> None:
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    c.write("/etc/systemd/system/knetstatd.service.d/restart.conf", "[Service]\nRestart=always\nRestartSec=0\n")
    product.install(c, ["kt-good"], settle_seconds=0.1, retry_first_seconds=1)
    c.run(["systemctl", "daemon-reload"], check=True)
    c.start_product()
    product.wait_ready(c, "running")
    begin = time.monotonic()
    _undo(c, kernel, "kt-good")
    _verified(c, kernel)
    span = time.monotonic() - begin
    chance = random.Random(seed)
    for number in range(times):
        _undo(c, kernel, "kt-good")
        victim = chance.choice(VICTIMS)
        delay = chance.uniform(0, span * 1.1)  # some come too late, which must do no harm either
        time.sleep(delay)
        c.run(["pkill", "-KILL", "-f" if "netstatd" in victim else "-x", victim])
        try:
            _verified(c, kernel)
        except AssertionError as e:
            raise AssertionError(f"kill {number}: {victim} after {delay:.2f} s (seed {seed})") from e
    assert not list(c.path("/var/lib/knetstatd/stage").rglob("*")), "nothing is left of killed builds"


def test_kill_9_at_random_instants(bookworm: Container) -> None:
    _kill_at_random(bookworm, 6, random.randrange(1 << 30))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kill_9_at_fifty_random_instants(machine: Container) -> None:
    """`make container-slow`."""
    _kill_at_random(machine, 50, random.randrange(1 << 30))


# The states that kills leave behind in dkms's tree, by the point at which dkms died; each made for real from a good build.
HALVE = "for f in {}; do truncate -s $(($(stat -c %s $f) / 2)) $f; done; "
KILL_POINTS = {
    "directory": "rm -r $BUILT/module $BUILT/log; rm -f $LINK $FILE",
    "no module": "rm $BUILT/module/*; rm -f $LINK $FILE",
    "torn in dkms's tree": HALVE.format("$BUILT/module/kt_good.ko*") + "rm -f $LINK $FILE",
    "empty in dkms's tree": "truncate -s 0 $BUILT/module/kt_good.ko*; rm -f $LINK $FILE",
    "built only": "rm -f $LINK $FILE",
    "torn in /lib/modules": HALVE.format("$FILE") + "rm -f $LINK",
    "empty in /lib/modules": "truncate -s 0 $FILE",
    "no mark": "rm -f $LINK; depmod $K",
    "no depmod": "mv $FILE $FILE.away; depmod $K; mv $FILE.away $FILE",
    "deleted": "rm $FILE",
    "junk": "head -c 20000 /dev/urandom > $FILE",
}


def test_every_kill_point_converges(machine: Container) -> None:
    c = machine
    kernel = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"], settle_seconds=0.1)
    product.wait_ready(c, "running")
    for name, damage in KILL_POINTS.items():
        c.run(["systemctl", "stop", "knetstatd"], check=True)
        built = f"/var/lib/dkms/kt-good/1.0/{kernel.release}/x86_64"
        link = f"/var/lib/dkms/kt-good/kernel-{kernel.release}-x86_64"
        file = c.output("modinfo", "-k", kernel.release, "-n", "kt_good")
        variables = {"BUILT": built, "LINK": link, "FILE": file, "K": kernel.release}
        c.run(["sh", "-ec", damage], env=variables, check=True)
        if name not in ("built only", "no mark"):
            assert product.check(c, "running") == 1, f"{name}: green before the cure"
        c.start_product()
        try:
            if name == "no mark":  # the file is good; that dkms does not know it is dkms's affair
                product.wait_ready(c, "running")
                product.right_module(c, kernel, "kt_good")
                continue
            _verified(c, kernel)
        except AssertionError as e:
            raise AssertionError(f"kill point: {name}") from e


def test_without_any_event_it_converges_by_resync(bookworm: Container) -> None:
    """No inotify instance can be had: the daemon says so once, and looks again by its timer."""
    c = bookworm
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    # The first open of an inotify object fails, as it does when fs.inotify.max_user_instances is used up.
    unit = "[Service]\nSystemCallFilter=~inotify_init inotify_init1\nSystemCallErrorNumber=EMFILE\n"
    c.write("/etc/systemd/system/knetstatd.service.d/blind.conf", unit)
    c.run(["systemctl", "daemon-reload"], check=True)
    product.start(c, ["kt-good"], resync_seconds=10)
    product.wait_ready(c)
    assert any("inotify" in e["MESSAGE"] for e in product.events(c) if e["KNETSTATD_EVENT"] == "degraded")
    c.install_kernel(new)
    product.wait_ready(c, new.release)
    product.right_module(c, new, "kt_good")


def test_a_storm_of_directories(bookworm: Container) -> None:
    """Hundreds of directories come and go in /lib/modules, the event queue overflows: still there, still right."""
    c = bookworm
    c.add_fixture("good", autoinstall=False)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    script = "for i in $(seq 500); do mkdir /lib/modules/9.9.$i; rmdir /lib/modules/9.9.$i; done"
    c.run(["sh", "-c", script], check=True)
    c.run(["systemctl", "kill", "-s", "STOP", "knetstatd"], check=True)
    c.run(["sh", "-c", "cd /lib/modules; for i in $(seq 9000); do : > f$i; done; rm f*"], check=True)
    c.run(["systemctl", "kill", "-s", "CONT", "knetstatd"], check=True)
    product.wait("the loss is said", lambda: "events-lost" in product.kinds(c))
    kernel = c.kernels()[0]
    c.path(f"/lib/modules/{kernel.release}/updates/dkms/kt_good.ko").unlink()
    c.run(["depmod", kernel.release], check=True)
    product.wait("it is built again", lambda: product.kinds(c).count("published") == 2)
    _verified(c, kernel)


def _hook_and_daemon(c: Container, times: int) -> None:
    """Installs a kernel again and again with the distribution's hook and the daemon side by side."""
    _, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=True)
    c.add_fixture("story")
    product.start(c, ["*"], settle_seconds=0.1)
    product.wait_ready(c)
    for number in range(times):
        done = c.install_kernel(new, check=False)
        assert done.returncode == 0, f"install {number}: {done.stdout[-3000:]}\n{done.stderr[-2000:]}"
        assert "Error!" not in done.stdout, f"install {number}: {done.stdout[-3000:]}"
        assert c.package_state(new.image) == "ii"
        assert c.package_state(new.headers) == "ii"
        product.wait_ready(c, new.release)
        product.right_module(c, new, "kt_good")
        product.right_module(c, new, "kt_story")
        c.run(["apt-get", "-q", "-y", "purge", new.image, new.headers], check=True, timeout=120)


def test_hook_and_daemon_side_by_side(machine: Container) -> None:
    _hook_and_daemon(machine, 2)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_hook_and_daemon_side_by_side_fifty_times(bookworm: Container) -> None:
    """`make container-slow`."""
    _hook_and_daemon(bookworm, 50)
