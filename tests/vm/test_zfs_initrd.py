# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's zfs, with a root on it: the initrd that apt made before zfs was built is red, and does not boot; the one that the
fix makes is green, and boots.

zfs-dkms, zfs-initramfs, dkms, apt and the pool are real. The headers come after the kernel, so dkms builds zfs after apt made
the initrd, and nobody makes it anew.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.container import foreign, product, rig
from tests.vm import disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.rig import Container

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(10800)]

PACKAGES = ("zfs-dkms", "zfs-initramfs")
TIMEOUT = 1500.0
# A pool with the smallest root there is; its one program says what it started from.
POOL = """\
set -e
modprobe zfs
zpool create -o cachefile=none -O mountpoint=none rpool /dev/vdb
zfs create -o mountpoint=legacy rpool/ROOT
mount -t zfs rpool/ROOT /mnt
mkdir -p /mnt/bin /mnt/dev /mnt/etc /mnt/proc /mnt/root /mnt/run /mnt/sbin /mnt/sys /mnt/usr
cp /usr/bin/busybox /mnt/bin/
cat >/mnt/sbin/init <<'END'
#!/bin/busybox sh
echo "== root: $(/bin/busybox grep ' / zfs' /proc/mounts) =="
/bin/busybox poweroff -f
END
chmod 755 /mnt/sbin/init
umount /mnt
zpool export rpool
echo made
"""


def install(c: Container, kernel: rig.Kernel) -> None:
    """zfs, then the kernel, then its headers: that is when dkms builds zfs, in 10 to 50 minutes."""
    c.set_running(kernel)
    disk.prepare(c)
    shutil.copytree(foreign.repository(c.suite, PACKAGES, "contrib"), c.path("/srv/foreign"))
    c.write("/etc/apt/sources.list.d/foreign.list", "deb [trusted=yes] file:/srv/foreign ./\n")
    c.run(["apt-get", "-q", "update"], check=True)
    c.run(["apt-get", "-q", "-y", "install", *PACKAGES], check=True, timeout=900)
    c.install_kernel(kernel, headers=False)
    c.run(c.install_argv(kernel, image=False), check=True, timeout=7200)


def checks(c: Container, release: str) -> dict[str, dict[str, str]]:
    """The check of the initrd, by module."""
    said = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", release], timeout=300).stdout)
    of_initrd = [check for check in said["checks"] if check["name"] == "initrd"]
    return {os.path.basename(check["file"]).partition(".ko")[0]: check for check in of_initrd}


def judge(c: Container, kernel: rig.Kernel, initrd: Path) -> None:
    """Red for the initrd that apt made, of which a copy is kept at `initrd`; green for the one that the fix makes."""
    release, place = kernel.release, f"/boot/initrd.img-{kernel.release}"
    assert f"{release}, x86_64: installed" in c.output("dkms", "status", "zfs")
    assert "/zfs.ko" not in c.output("lsinitramfs", place)
    initrd.write_bytes(c.path(place).read_bytes())
    before = checks(c, release)
    for check in before.values():
        assert (check["result"], check["fix"]) == ("fail", f"Run: update-initramfs -u -k {release}"), check
    assert before["zfs"]["reason"].endswith(": /usr/share/initramfs-tools/hooks/zfs")
    assert product.verdict(c, release)["state"] == "blocked"
    assert product.check(c, release) == 1
    c.run(before["zfs"]["fix"].removeprefix("Run: ").split(), check=True, timeout=300)
    listed = c.output("lsinitramfs", place)
    assert all(f"/{name}.ko" in listed for name in before), listed
    assert [check["found"] for check in checks(c, release).values()] == ["the same copy in it"] * len(before)
    assert product.verdict(c, release)["state"] == "ready"
    assert product.check(c, release) == 0


@pytest.mark.parametrize("suite", rig.SUITES)
def test_a_root_on_zfs(suite: str, tmp_path: Path) -> None:
    with rig.container(suite, boot=False, first_kernel=False) as c:
        kernel = c.kernels()[0]
        install(c, kernel)
        product.install(c, ["zfs"])
        judge(c, kernel, tmp_path / "before")
        image = disk.make(c, tmp_path)
    boots(image, kernel.release, tmp_path / "before")


def boots(image: Path, release: str, before: Path) -> None:
    """The old initrd does not find a root that is on zfs, the new one does."""
    files = disk.kernel(image, release)
    pool = image.with_name("pool")
    with pool.open("wb") as made:
        made.truncate(256 << 20)
    said = disk.boot(image, files, POOL, more=[pool], timeout=TIMEOUT)
    assert (said.code, said.output.splitlines()[-1]) == (0, "made"), said.console[-4000:]
    root, end = "root=ZFS=rpool/ROOT", "Failed to load ZFS modules."
    said = disk.boot(image, files._replace(initrd=before), "", arguments=root, more=[pool], until=end, timeout=TIMEOUT)
    assert end in said.console, said.console[-4000:]
    assert "== root:" not in said.console
    said = disk.boot(image, files, "", arguments=root, more=[pool], timeout=TIMEOUT)
    assert "== root: rpool/ROOT / zfs " in said.console, said.console[-4000:]
