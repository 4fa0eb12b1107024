# SPDX-License-Identifier: GPL-2.0-or-later
"""What must be true of a machine after every fault, asked by tools that are not ours where there are any."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from tests.container import product

if TYPE_CHECKING:
    from tests.container.rig import Container, Kernel


def sources(c: Container) -> dict[str, str]:
    """The files of every DKMS source, and what they hold; taken before the fault, and handed to `whole` after it."""
    files = [path for path in c.path("/usr/src").glob("*-1.0/*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def whole(c: Container, before: dict[str, str], kernels: tuple[Kernel, ...]) -> None:
    """apt works, all kernels are installed and have an initrd, no source is lost, the daemon runs, nothing of ours is torn."""
    assert c.output("dpkg", "--audit") == ""
    c.run(["apt-get", "check"], check=True)
    for kernel in kernels:
        assert c.package_state(kernel.image) == "ii"
        c.run(["test", "-s", f"/boot/initrd.img-{kernel.release}"], check=True)
        c.run(["test", "-s", f"/boot/vmlinuz-{kernel.release}"], check=True)
    assert before
    assert sources(c) == before
    registered = c.output("dkms", "status")
    for path in c.path("/usr/src").glob("kt-*"):
        name, _, version = path.name.rpartition("-")
        assert f"{name}/{version}" in registered
    assert c.run(["systemctl", "is-active", "knetstatd"]).stdout.strip() == "active"
    product.wait("no run of ours left a file", lambda: not left(c), 30)
    for name in find(c, "/var/lib/knetstatd", "/run/knetstatd", "-name", "*.json"):
        c.run(["python3", "-m", "json.tool", name], check=True)


def left(c: Container) -> list[str]:
    """Temporary files and working directories of ours."""
    return find(c, "/var/lib/knetstatd", "-name", ".*")


def find(c: Container, *argv: str) -> list[str]:
    """As the machine itself finds it: what is mounted in it is not seen from outside."""
    return c.run(["find", *argv]).stdout.split()


def proven(c: Container, kernel: Kernel, module: str, timeout: float = 120) -> None:
    """The verdict is ready, and other tools agree: vermagic, every checksum, what modprobe would take."""
    product.wait_ready(c, kernel.release, timeout)
    product.right_module(c, kernel, module)
    assert c.run(["modprobe", "-S", kernel.release, "--show-depends", module]).returncode == 0
    assert c.run(["knetstatctl", "verify", "--kernel", kernel.release]).returncode == 0


def red(c: Container, kernel: Kernel, words: str, timeout: float = 120) -> str:
    """It is red for this reason, and never was green meanwhile; returns the reason."""

    def reason() -> str:
        assert product.check(c, kernel.release) != 0
        [found] = json.loads(c.output("knetstatctl", "explain", "--json", kernel.release))["verdicts"]
        said = f"{found['reason']} {found.get('last_failure') or ''}"
        return said if words in said else ""

    said: str = product.wait(f"red with {words!r}", reason, timeout)
    return said
