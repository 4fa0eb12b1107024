# SPDX-License-Identifier: GPL-2.0-or-later
"""File systems that are full, or cannot be written: /, /boot, /var, /tmp, /lib/modules."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.container import product
from tests.faults import invariants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.container.rig import Container

pytestmark = [pytest.mark.container, pytest.mark.slow]


def mounted(c: Container, path: str, spare: str) -> None:
    """`path` becomes a file system of its own, with all that was in it, and at most `spare` left over."""
    c.run(["mkdir", "/mnt/new"], check=True)
    c.run(["mount", "-t", "tmpfs", "-o", "mode=1777" if path == "/tmp" else "mode=755", "tmpfs", "/mnt/new"], check=True)
    c.run(["cp", "-a", f"{path}/.", "/mnt/new"], check=True)
    c.run(["mount", "--bind", "/mnt/new", path], check=True)
    used = int(c.output("sh", "-c", f"df --output=used -k {path} | tail -n 1"))
    c.run(["mount", "-o", f"remount,size={used + int(spare)}k", path], check=True)


@contextlib.contextmanager
def filled(c: Container, path: str) -> Iterator[None]:
    """Not a byte is free there."""
    c.run(["sh", "-c", f"cat /dev/zero >{path}/fill"])
    assert c.run(["sh", "-c", f"echo x >{path}/more"]).returncode != 0, "not full"
    try:
        yield
    finally:
        c.run(["rm", "-f", f"{path}/fill", f"{path}/more"], check=True)


def test_var_is_full(machine: Container) -> None:
    """Where we compile, where dkms keeps its builds, where the journal is."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    c.install_kernel(new)
    mounted(c, "/var", "50000")
    product.start(c, ["kt-good"], retry_first_seconds=2, retry_longest_seconds=4)
    with filled(c, "/var"):
        c.run(["systemctl", "restart", "knetstatd"], check=True)
        product.wait("it has tried", lambda: _stopped(c), 60)
        found = product.verdict(c, new.release)
        assert found["ready"] is False
        assert c.module_file(new, "kt_good") is None
        assert c.run(["systemctl", "is-active", "knetstatd"]).returncode == 0
        said = c.run(["knetstatctl", "build", new.release])
        assert said.returncode == 1
        assert "free" in said.stdout + said.stderr or "No space left" in said.stdout + said.stderr, said
    c.run(["mount", "-o", "remount,size=2g", "/var"], check=True)
    c.run(["systemctl", "reload", "knetstatd"], check=True)
    for kernel in (old, new):
        invariants.proven(c, kernel, "kt_good")
    invariants.whole(c, before, (old, new))


def _stopped(c: Container) -> bool:
    return c.run(["pgrep", "-f", "[k]netstatctl (build|compile)"]).returncode != 0


def test_root_is_full(bookworm: Container) -> None:
    """The whole machine's file system: nothing can be written anywhere but in /run."""
    c = bookworm
    above = c.root.parent / "above"
    if not above.is_mount():
        pytest.skip("too little memory: the machine's file system is the host's")
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    c.install_kernel(new)
    product.install(c, ["kt-good"], retry_first_seconds=2, retry_longest_seconds=4)
    used = shutil.disk_usage(above).used >> 10
    subprocess.run(["mount", "-o", f"remount,size={used + 100}k", above], check=True)
    with filled(c, "/root"):
        c.start_product()
        for _ in range(5):
            found = product.verdict(c, new.release)
            assert found["ready"] is False, found
        said = c.run(["knetstatctl", "build", new.release])
        assert said.returncode == 1, said
        assert "No space left" in said.stdout + said.stderr or "MiB are free" in said.stdout + said.stderr, said
        assert "Traceback" not in said.stderr
        assert c.run(["systemctl", "is-active", "knetstatd"]).returncode == 0
    subprocess.run(["mount", "-o", "remount,size=4g", above], check=True)
    for kernel in (old, new):
        invariants.proven(c, kernel, "kt_good")
    invariants.whole(c, before, (old, new))


def test_boot_is_full(machine: Container) -> None:
    """apt fails, since the initrd has no room. With room again, what is left half-installed can be finished, and is green."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.start(c, ["kt-good"])
    product.wait_ready(c)
    image = c.path(f"/boot/vmlinuz-{old.release}").stat().st_size >> 10
    mounted(c, "/boot", f"{image + 3000}")
    done = c.install_kernel(new, check=False)
    assert done.returncode != 0, "there was room"
    assert c.package_state(new.image) != "ii"
    assert product.check(c, new.release) != 0, "green, of a kernel that is half there"
    c.run(["mount", "-o", "remount,size=1g", "/boot"], check=True)
    c.run(["knetstatctl", "repair", "--yes", new.release], timeout=300)
    c.run(["apt-get", "-q", "-y", "-f", "install"], check=True, timeout=300)
    c.install_kernel(new)
    invariants.proven(c, new, "kt_good")
    invariants.whole(c, before, (old, new))


def test_tmp_is_full(machine: Container) -> None:
    """dkms makes a file in /tmp and blames dkms.conf where it cannot; ours has a place of its own."""
    c = machine
    old, new = c.kernels()[:2]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.install(c, ["kt-good"])
    mounted(c, "/tmp", "64")
    with filled(c, "/tmp"):
        c.start_product()
        invariants.proven(c, old, "kt_good")
    c.install_kernel(new)
    invariants.proven(c, new, "kt_good")
    invariants.whole(c, before, (old, new))


@pytest.mark.parametrize("place", ["/usr/lib/modules", "/var/lib/dkms"])
def test_where_modules_go_is_read_only(machine: Container, place: str) -> None:
    """dkms 3.0 says `installed` there, with no module. We say what it is, and heal when it can be written."""
    c = machine
    old = c.kernels()[0]
    c.add_fixture("good", autoinstall=False)
    before = invariants.sources(c)
    product.install(c, ["kt-good"], retry_first_seconds=2, retry_longest_seconds=4)
    c.run(["mount", "--bind", place, place], check=True)
    c.run(["mount", "-o", "remount,bind,ro", place], check=True)
    c.start_product()
    said = invariants.red(c, old, "ead-only")
    assert c.module_file(old, "kt_good") is None, said
    c.run(["umount", place], check=True)
    invariants.proven(c, old, "kt_good")
    invariants.whole(c, before, (old,))
