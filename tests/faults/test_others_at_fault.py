# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon lives beside stops, hangs or is killed: journald, D-Bus, logind, dpkg, the compiler."""

from __future__ import annotations

import random
import re
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from tests.container import product
from tests.faults import invariants

if TYPE_CHECKING:
    from tests.container.rig import Container

pytestmark = [pytest.mark.container, pytest.mark.slow]

SOCKETS = {
    "journald": ("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket",
                 "systemd-journald.service"),
    "D-Bus": ("dbus.socket", "dbus.service"),
    "logind": ("systemd-logind.service",),
    "D-Bus and logind": ("dbus.socket", "dbus.service", "systemd-logind.service"),
}  # fmt: skip


def pid(c: Container) -> str:
    return c.output("systemctl", "show", "-P", "MainPID", "knetstatd")


@pytest.mark.parametrize("absent", SOCKETS)
def test_what_it_talks_to_is_gone(machine: Container, absent: str) -> None:
    """Stopped, and kept from coming back, while a kernel is installed: built and proven all the same, by the same daemon."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    was = pid(c)
    names = list(SOCKETS[absent])
    run = c._machine.control  # commands of the rig are units, which D-Bus is asked for
    run("systemctl", "mask", "--runtime", *names)
    run("systemctl", "stop", *names)
    assert "\nactive" not in "\n" + run("systemctl", "is-active", *names, check=False)
    run("env", "DEBIAN_FRONTEND=noninteractive", *c.install_argv(new))
    said = "sh", "-c", f"knetstatctl check --quiet {new.release} && echo ready"
    product.wait("it is ready without", lambda: "ready" in run(*said, check=False))
    assert run("modinfo", "-k", new.release, "-F", "vermagic", "kt_good").startswith(f"{new.release} ")
    run("systemctl", "unmask", "--runtime", *names)
    run("systemctl", "start", *names)
    invariants.proven(c, new, "kt_good")
    assert pid(c) == was
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    product.wait("the journal has it again", lambda: "config-loaded" in product.kinds(c))
    assert pid(c) == was
    invariants.whole(c, before, (old, new))


def test_dpkg_is_killed_half_way(machine: Container) -> None:
    """At random instants of the installation of a kernel. Never green too early; finished by what dpkg itself asks for."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    begin = time.monotonic()
    c.install_kernel(new)
    span = time.monotonic() - begin
    for number in range(5):
        c.run(["apt-get", "-q", "-y", "purge", new.image, new.headers], check=True, timeout=300)
        apt = c.start(c.install_argv(new))
        after = span * (number + chance.random()) / 5
        time.sleep(after)
        apt.kill()
        apt.wait()
        at = f"killed after {after:.2f} of {span:.2f} s (seed {seed})"
        if product.check(c, new.release) == 0:
            product.right_module(c, new, "kt_good")
        assert c.run(["systemctl", "is-active", "knetstatd"]).returncode == 0, at
        c.run(["knetstatctl", "repair", "--yes", new.release], timeout=300)
        c.run(["dpkg", "--configure", "-a"], timeout=300)
        done = c.install_kernel(new, check=False)
        assert done.returncode == 0, f"{at}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        invariants.proven(c, new, "kt_good")
        invariants.whole(c, before, (old, new))


HANGING = """\
#!/bin/sh
case "$*" in *kt_good*) trap '' TERM INT HUP; setsid sleep 1000 & while :; do sleep 1; done ;; esac
exec {real} "$@"
"""


def test_a_compiler_that_hangs(machine: Container) -> None:
    """It ignores signals, and has started something in a session of its own. Ended, named, and built when it is well again."""
    c = machine
    old = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    compiler = re.search(r"(?:gcc|\w+-linux-gnu-gcc)-\d+", c.path(f"/boot/config-{old.release}").read_text())
    assert compiler is not None
    path = c.path(f"/usr/bin/{compiler[0]}")
    real = f"/usr/bin/{path.resolve().name}.real"
    c.run(["cp", "-a", f"/usr/bin/{path.resolve().name}", real], check=True)
    name = f"/usr/bin/{path.resolve().name}"
    c.run(["mv", name, f"{name}.away"], check=True)
    c.write(name, HANGING.format(real=real), 0o755)
    product.start(c, ["kt-good"], compile_timeout_seconds=10)
    invariants.red(c, old, "did not end within 10 s")
    product.wait("nothing of it is left", lambda: c.run(["pgrep", "-f", "[s]leep 1000"]).returncode != 0, 30)
    c.run(["mv", f"{name}.away", name], check=True)
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    invariants.proven(c, old, "kt_good")
    invariants.whole(c, before, (old,))


def image_payload(data: bytes) -> int:
    """Where in a boot image its compressed kernel begins (Linux's Documentation/arch/x86/boot.rst)."""
    return ((data[0x1F1] or 4) + 1) * 512 + int.from_bytes(data[0x248:0x24C], "little")


def test_the_kernel_is_reinstalled_under_its_name_with_other_contents(bookworm: Container) -> None:
    """Other checksums for symbols that the module uses, in its modules and its headers: dkms sees nothing, we build again.

    Its image is made unreadable; else it would say that it is of another build than these.
    """
    c = bookworm
    old = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    table = c.path(f"/usr/src/linux-headers-{old.release}/Module.symvers").read_text()
    crcs = {row[1]: int(row[0], 16) for row in (line.split("\t") for line in table.splitlines())}
    changed = {name: crcs[name] for name in ("dev_get_by_name", "proc_create_single_data", "seq_printf")}
    for package in (old.image, old.headers):
        unpacked = f"/root/{package}"
        [deb] = list(c.repository.rglob(f"{package}_*.deb"))
        c.run(["dpkg-deb", "-R", f"/srv/repo/{deb.relative_to(c.repository)}", unpacked], check=True)
        for path in (p for p in c.path(unpacked).rglob("*") if p.suffix == ".ko" or p.name == "Module.symvers"):
            data = path.read_bytes()
            for name, crc in changed.items():  # an entry of __versions, a line of Module.symvers
                data = data.replace(crc.to_bytes(8, "little") + name.encode() + b"\0", b"\x78\x56\x34\x12" + bytes(4)
                                    + name.encode() + b"\0")  # fmt: skip
                data = data.replace(f"0x{crc:08x}\t{name}\t".encode(), f"0x12345678\t{name}\t".encode())
            if path.name == "Module.symvers":
                assert data.count(b"0x12345678") == len(changed)
            path.write_bytes(data)
        for path in c.path(unpacked).rglob("vmlinuz*"):
            data = path.read_bytes()
            path.write_bytes(data.replace(data[image_payload(data) :][:64], bytes(64)))
        c.run(["dpkg-deb", "-Znone", "-b", unpacked, f"{unpacked}.deb"], check=True, timeout=300)
        shutil.rmtree(c.path(unpacked))
    c.run(["dpkg", "-i", f"/root/{old.image}.deb", f"/root/{old.headers}.deb"], check=True, timeout=300)
    assert f"{old.release}, x86_64: installed" in c.output("dkms", "status")
    product.wait("it is built again", lambda: product.kinds(c, kernel=old.release).count("published") == 2, 60)
    invariants.proven(c, old, "kt_good")
    invariants.whole(c, before, (old,))


def test_out_of_memory_in_the_build(machine: Container) -> None:
    """The kernel kills the compiler of a unit that may use too little. Red, with memory for a reason; then it heals."""
    c = machine
    old = c.kernels()[0]
    if "memory" not in c.run(["cat", "/sys/fs/cgroup/cgroup.controllers"]).stdout:
        pytest.skip("this host gives containers no memory controller")
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    unit = "/etc/systemd/system/knetstatd-compile@.service.d/little.conf"
    c.write(unit, "[Service]\nMemoryHigh=infinity\nMemoryMax=24M\nMemorySwapMax=0\n")
    product.start(c, ["kt-good"], retry_first_seconds=2, retry_longest_seconds=4)
    invariants.red(c, old, "memory")
    c.path(unit).unlink()
    c.run(["systemctl", "daemon-reload"], check=True)
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    invariants.proven(c, old, "kt_good")
    invariants.whole(c, before, (old,))


def test_headers_go_while_they_are_used(machine: Container) -> None:
    """Red for that, by its name; built when they are there again."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("slow", autoinstall=False, files={"delay": "10\n"})
    c.run(["apt-mark", "hold", old.headers], check=True)
    before = invariants.sources(c)
    product.start(c, ["kt-slow"])
    c.install_kernel(new)
    product.wait("it compiles", lambda: "stage-started" in product.kinds(c, kernel=new.release))
    c.run(["apt-get", "-q", "-y", "purge", new.headers], check=True, timeout=300)
    product.wait("it has ended", lambda: c.run(["pgrep", "-f", "[k]netstatctl build"]).returncode != 0)
    product.wait("red for that", lambda: product.verdict(c, new.release)["state"] == "headers-missing")
    assert product.check(c, new.release) == 1
    assert f"apt install {new.headers}" in product.verdict(c, new.release)["fix"]
    assert c.module_file(new, "kt_slow") is None
    c.install_kernel(new)
    invariants.proven(c, new, "kt_slow")
    invariants.whole(c, before, (old, new))


@pytest.mark.parametrize("hook", [True, False], ids=["hook", "no hook"])
def test_two_kernels_at_once(machine: Container, hook: bool) -> None:
    """In one transaction. Each gets its own build, whoever makes it, and each is made once."""
    c = machine
    old, *new = c.kernels()[:3]
    c.add_fixture("good", autoinstall=hook)
    before = invariants.sources(c)
    product.start(c, ["kt-good"], kernels="all")
    product.wait_ready(c)
    packages = [name for kernel in new for name in (kernel.image, kernel.headers)]
    c.run(["apt-get", "-q", "-y", "install", *packages], check=True, timeout=600)
    for kernel in new:
        invariants.proven(c, kernel, "kt_good")
        assert product.kinds(c, kernel=kernel.release).count("published") <= 1
    invariants.whole(c, before, (old, *new))


def test_a_kernel_is_moved_away_and_back(machine: Container) -> None:
    """Its whole directory, by one rename each."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.start(c, ["kt-good"])
    c.install_kernel(new)
    invariants.proven(c, new, "kt_good")
    built = product.kinds(c, kernel=new.release).count("published")
    c.run(["mv", f"/usr/lib/modules/{new.release}", "/root/away"], check=True)
    product.wait("it is gone", lambda: "kernel-removed" in product.kinds(c, kernel=new.release))
    c.run(["mv", "/root/away", f"/usr/lib/modules/{new.release}"], check=True)
    product.wait("it is back", lambda: product.kinds(c, kernel=new.release)[-1] == "ready")
    invariants.proven(c, new, "kt_good")
    assert product.kinds(c, kernel=new.release).count("published") == built
    invariants.whole(c, before, (old, new))
