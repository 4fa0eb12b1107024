# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that finds its root file system only with a DKMS module: what the verdict says of an initrd, and how it boots.

The root is to be mounted as kt_root, which is ext4 by another name (tests/fixtures/root). /etc/initramfs-tools/modules has the
module, but its kernel's headers come after the kernel, as they do to many machines: apt makes the initrd before dkms builds.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.container import product, rig
from tests.vm import disk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.rig import Container

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

SOURCE = "/usr/src/kt-root-1.0/kt_root.c"
# Without `rootfstype=` the initramfs asks the disk, which says ext4.
ARGUMENTS = "rootfstype=kt_root"
TIMEOUT = 1500.0
# The script itself is started after multi-user.target.
SCRIPT = """\
systemctl is-active multi-user.target
echo "loaded: $(cat /sys/module/kt_root/version) installed: $(modinfo -F version kt_root)"
knetstatctl check --quiet; echo "check: $?"
"""


def check(c: Container, release: str) -> tuple[str, str, str]:
    """What the check of the initrd says: its result, reason and fix; the verdict and the exit code say the same."""
    said = json.loads(c.run(["knetstatctl", "verify", "--json", "-k", release]).stdout)
    found: dict[str, Any] = next(check for check in said["checks"] if check["name"] == "initrd")
    good = found["result"] == "pass"
    assert product.verdict(c, release)["state"] == ("ready" if good else "blocked")
    assert product.check(c, release) == (0 if good else 1)
    return found["result"], found.get("reason", ""), found.get("fix", "")


def newer(c: Container, version: int) -> None:
    """A newer source."""
    path = c.path(SOURCE)
    path.write_text(re.sub(r"MODULE_VERSION\(.*\)", f'MODULE_VERSION("{version}")', path.read_text()))


@pytest.mark.parametrize("suite", [
    "bookworm", pytest.param("trixie", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_root_that_needs_our_module(suite: str, tmp_path: Path) -> None:
    with rig.container(suite, boot=False, first_kernel=False) as c:
        kernel = c.kernels()[0]
        release, fix = kernel.release, f"Run: update-initramfs -u -k {kernel.release}"
        initrd = c.path(f"/boot/initrd.img-{release}")
        c.set_running(kernel)
        disk.prepare(c)
        with c.path("/etc/initramfs-tools/modules").open("a") as listed:
            listed.write("kt_root\n")
        c.add_fixture("root")
        product.install(c, ["kt-root"])
        # The initrd is older than the module.
        c.install_kernel(kernel, headers=False)
        c.install_kernel(kernel, image=False)
        assert c.module_file(kernel, "kt_root"), "the hook of the headers builds it"
        lacking = tmp_path / "lacking"
        shutil.copy(initrd, lacking)
        result, reason, run = check(c, release)
        assert (result, run) == ("fail", fix)
        assert "The initrd lacks this module, which a new one would hold: /etc/initramfs-tools/modules" in reason
        # What the fix says cures it.
        c.run(run.removeprefix("Run: ").split(), check=True, timeout=300)
        assert check(c, release)[0] == "pass"
        first = disk.make(c, tmp_path / "first")
        # The module is built again, of a newer source.
        newer(c, 2)
        assert c.run(["knetstatctl", "build", release], timeout=300).returncode == 1
        result, reason, run = check(c, release)
        assert (result, run) == ("fail", fix)
        assert "has another copy, and that one is loaded at boot" in reason
        second = disk.make(c, tmp_path / "second")
        # The configuration lets us make the initrd.
        product.install(c, ["kt-root"], initrd="update")
        c.run(["knetstatctl", "build", release], check=True, timeout=300)
        assert check(c, release)[0] == "pass"
        third = disk.make(c, tmp_path / "third")
    files = disk.kernel(first, release)
    said = disk.boot(first, files._replace(initrd=lacking), SCRIPT, arguments=ARGUMENTS, timeout=TIMEOUT)
    assert said.code is None
    assert "Failed to mount /dev/vda as root file system." in said.console, said.console[-4000:]
    for image, loaded, installed, code in ((first, 1, 1, 0), (second, 1, 2, 1), (third, 2, 2, 0)):
        said = disk.boot(image, disk.kernel(image, release), SCRIPT, arguments=ARGUMENTS, timeout=TIMEOUT)
        print(said.output)
        assert said.code == 0, said.console[-4000:]
        assert said.output.splitlines() == ["active", f"loaded: {loaded} installed: {installed}", f"check: {code}"]
