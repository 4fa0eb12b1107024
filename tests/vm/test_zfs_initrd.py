# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's zfs, with a root on it: the initrd that apt made before zfs was built is red, and does not boot; the one that the
fix makes is green, and boots.

zfs-dkms, zfs-initramfs, dkms, apt and the pool are real. The headers come after the kernel, so dkms builds zfs after apt made
the initrd, and nobody makes it anew.
"""

from __future__ import annotations

import json
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


def checks(c: Container, release: str) -> dict[str, dict[str, str]]:
    """The check of the initrd, by module."""
    proofs = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", release], timeout=300).stdout)
    return {proof["module"]: check for proof in proofs for check in proof["checks"] if check["name"] == "initrd"}


@pytest.mark.parametrize("suite", rig.SUITES)
def test_a_root_on_zfs(suite: str, tmp_path: Path) -> None:
    with rig.container(suite, boot=False, first_kernel=False) as c:
        kernel = c.kernels()[0]
        release, initrd = kernel.release, f"/boot/initrd.img-{kernel.release}"
        c.set_running(kernel)
        disk.prepare(c)
        product.install(c, ["zfs"])
        shutil.copytree(foreign.repository(suite, PACKAGES, "contrib"), c.path("/srv/foreign"))
        c.write("/etc/apt/sources.list.d/foreign.list", "deb [trusted=yes] file:/srv/foreign ./\n")
        c.run(["apt-get", "-q", "update"], check=True)
        c.run(["apt-get", "-q", "-y", "install", *PACKAGES], check=True, timeout=900)
        c.install_kernel(kernel, headers=False)
        c.run(c.install_argv(kernel, image=False), check=True, timeout=7200)
        assert f"{release}, x86_64: installed" in c.output("dkms", "status", "zfs")
        assert "/zfs.ko" not in c.output("lsinitramfs", initrd)
        before = shutil.copy(c.path(initrd), tmp_path / "before")
        found = checks(c, release)
        print(found)
        assert (found["zfs"]["result"], found["zfs"]["fix"]) == ("fail", f"Run: update-initramfs -u -k {release}")
        assert product.verdict(c, release)["state"] == "blocked"
        assert product.check(c, release) == 1
        c.run(found["zfs"]["fix"].removeprefix("Run: ").split(), check=True, timeout=300)
        listed = c.output("lsinitramfs", initrd)
        assert "/zfs.ko" in listed
        after = checks(c, release)
        print(after)
        assert {name: check["result"] for name, check in after.items()} == dict.fromkeys(found, "pass")
        assert {name for name, check in after.items() if check["found"] == "the same copy in it"} == {
            name for name in found if f"/{name}.ko" in listed
        }
        assert {name for name, check in found.items() if check["result"] == "fail"} == {
            name for name in found if f"/{name}.ko" in listed
        }
        assert product.verdict(c, release)["state"] == "ready"
        image = disk.make(c, tmp_path)
    files = disk.kernel(image, release)
    pool = tmp_path / "pool"
    with pool.open("wb") as made:
        made.truncate(256 << 20)
    said = disk.boot(image, files, POOL, more=[pool])
    assert (said.code, said.output.splitlines()[-1]) == (0, "made"), said.console[-4000:]
    root, end = "root=ZFS=rpool/ROOT", "Failed to load ZFS modules."
    said = disk.boot(image, files._replace(initrd=before), "", arguments=root, more=[pool], until=end)
    assert end in said.console, said.console[-4000:]
    assert "== root:" not in said.console
    said = disk.boot(image, files, "", arguments=root, more=[pool])
    assert "== root: rpool/ROOT / zfs " in said.console, said.console[-4000:]
