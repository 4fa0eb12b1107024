# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole promise: a machine runs one kernel, apt installs another, it is rebooted, and the module is there.

The machine is a Debian with systemd, booted under QEMU from a disk; apt, dkms, the daemon and the reboot are real.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.container import product, rig
from tests.vm import disk

if TYPE_CHECKING:
    from tests.container.rig import Container, Kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

SOURCE = Path(__file__).parents[2]
# (suite, from, to): series as rig.Container.kernels takes them, and which of that series.
UPGRADES = {
    "symbols changed": ("bookworm", ("6.1", -1), ("6.12", 0)),
    "point release": ("bookworm", ("6.1", 0), ("6.1", 1)),
    "no MODVERSIONS any more": ("trixie", ("6.12", -1), ("7", 0)),
    "no MODVERSIONS": ("trixie", ("7", 0), ("7", 1)),
}
# In `make test`; `make test-vm` runs them all.
QUICK = ("symbols changed", "story")

# Packaged as the one was that this project began with: dkms.conf sets a variable that the Makefile does not read.
STORY_MAKEFILE = """\
KSRC ?= /lib/modules/$(shell uname -r)/build
obj-m := knetstat.o
all:
\t$(MAKE) -C $(KSRC) M=$(CURDIR) modules
clean:
\t$(MAKE) -C $(KSRC) M=$(CURDIR) clean
"""
STORY_CONF = """\
PACKAGE_NAME="knetstat"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="knetstat"
BUILT_MODULE_LOCATION[0]="."
DEST_MODULE_LOCATION[0]="/updates"
REMAKE_INITRD="yes"
MAKE[0]="make -C . KERNELDIR=/lib/modules/${{kernelver}}/build"
CLEAN="make -C . clean"
AUTOINSTALL="yes"
"""

# What the administrator does: installs a kernel. Everything else happens by itself.
UPGRADE = """\
for i in $(seq 120); do knetstatctl check --quiet running; code=$?; [ $code -ne 75 ] && break; sleep 1; done
echo "before: $code"; test -e /proc/net/tcpstat; echo "tcpstat: $?"
DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install {image} {headers} >/tmp/apt.log 2>&1 || cat /tmp/apt.log
knetstatctl check --quiet {release}; echo "at once: $?"
for i in $(seq 400); do knetstatctl check --quiet {release}; code=$?; [ $code -ne 75 ] && break; sleep 1; done
echo "ready: $code"
dkms status
modinfo -k {release} -F vermagic knetstat
dpkg-query -W -f '${{db:Status-Abbrev}}\\n' {image} {headers}
journalctl --no-pager -o cat -u knetstatd | tail -n 40
"""
# After the reboot nothing is typed but questions.
REBOOTED = """\
uname -r
for i in $(seq 60); do [ -e /sys/module/knetstat ] && break; sleep 1; done
cat /proc/net/tcpstat
knetstatctl check running; echo "check: $?"
for i in $(seq 60); do journalctl --no-pager -b -o cat -u knetstatd | grep 'running): ready' && break; sleep 1; done
knetstatctl sockets tcp6 >/dev/null; echo "sockets: $?"
rmmod knetstat
for i in $(seq 60); do [ -e /sys/module/knetstat ] && break; sleep 1; done
test -e /proc/net/udpstat; echo "unloaded by hand, and loaded again: $?"
journalctl --no-pager -b -k -o cat -g knetstat
"""


def pick(c: Container, choice: tuple[str, int]) -> Kernel:
    series, number = choice
    return c.kernels(series)[number]


def register(c: Container, *, story: bool) -> None:
    """The bundled module in DKMS, packaged well or as in the story."""
    version = re.search(r'PACKAGE_VERSION="(.*)"', (SOURCE / "module/dkms.conf").read_text())
    assert version is not None
    target = c.path(f"/usr/src/knetstat-{version[1]}")
    shutil.copytree(SOURCE / "module", target)
    if story:
        (target / "Kbuild").unlink()
        (target / "Makefile").write_text(STORY_MAKEFILE)
        (target / "dkms.conf").write_text(STORY_CONF.format(version=version[1]))
    c.run(["dkms", "add", f"knetstat/{version[1]}"], check=True)


def machine(
    suite: str, old: tuple[str, int], new: tuple[str, int], directory: Path, *, story: bool, guard: bool
) -> disk.Upgrade:
    """A disk on which `old` is installed with the module for it, and `new` is in apt's repository."""
    with rig.container(suite, boot=False, first_kernel=False) as c:
        disk.prepare(c)
        before, after = pick(c, old), pick(c, new)
        c.set_running(before)
        c.install_kernel(before)
        register(c, story=story)
        if guard:
            product.install(c, ["knetstat"])
            c.run(["knetstatctl", "build", before.release], check=True, timeout=300)
            c.run(["systemctl", "enable", "knetstatd"], check=True)
        else:
            c.run(["dkms", "autoinstall", "-k", before.release], check=True, timeout=300)
            c.write("/etc/modules-load.d/knetstat.conf", "knetstat\n")
        disk.keep_repository(c)
        return disk.Upgrade(disk.make(c, directory), before, after)


@pytest.mark.parametrize(
    ("way", "packaging"),
    [
        pytest.param(way, packaging, marks=() if (way, packaging) == QUICK else (pytest.mark.slow,), id=f"{way}-{packaging}")
        for way in UPGRADES
        for packaging in ("well", "story")
    ],
)
def test_the_module_is_there_after_the_upgrade_and_the_reboot(way: str, packaging: str, tmp_path: Path) -> None:
    up = machine(*UPGRADES[way], tmp_path, story=packaging == "story", guard=True)
    names = {"image": up.new.image, "headers": up.new.headers, "release": up.new.release}
    said = disk.boot(up.image, disk.kernel(up.image, up.old.release), UPGRADE.format(**names), timeout=1500)
    assert said.code == 0, said.console[-4000:]
    assert said.output.startswith("before: 0\ntcpstat: 0\n"), said.output
    assert "at once: 0" not in said.output or packaging == "well", said.output
    assert "ready: 0" in said.output, said.output
    assert said.output.count("ii ") == 2, said.output
    assert f"\n{up.new.release} " in said.output, "the vermagic is the new kernel's"
    said = disk.boot(up.image, disk.kernel(up.image, up.new.release), REBOOTED)
    assert said.code == 0, said.console[-4000:]
    assert said.output.startswith(up.new.release), said.output
    assert "Recv-Q Send-Q Local Address" in said.output, said.output
    assert "check: 0" in said.output, said.output
    # The daemon has probed it, from its own network namespace.
    assert f"{up.new.release} (next, running): ready (" in said.output, said.output
    assert "sockets: 0" in said.output, said.output
    assert "unloaded by hand, and loaded again: 0" in said.output, said.output


@pytest.mark.slow
def test_plain_dkms_loses_the_module(tmp_path: Path) -> None:
    """The same without us, packaged as in the story: dkms says installed, and the kernel refuses it in the story's words."""
    up = machine(*UPGRADES["no MODVERSIONS"], tmp_path, story=True, guard=False)
    names = {"image": up.new.image, "headers": up.new.headers, "release": up.new.release}
    said = disk.boot(up.image, disk.kernel(up.image, up.old.release), PLAIN.format(**names), timeout=1500)
    assert re.search(rf"^knetstat/.*, {re.escape(up.new.release)}, x86_64: installed", said.output, re.MULTILINE), said.output
    said = disk.boot(up.image, disk.kernel(up.image, up.new.release), REFUSED)
    assert said.output.startswith(up.new.release), said.output
    assert f"knetstat: version magic '{up.old.release} " in said.output, said.output
    assert f"should be '{up.new.release} " in said.output, said.output
    assert "Exec format error" in said.output, said.output
    assert "tcpstat: 1" in said.output, said.output


PLAIN = """\
test -e /proc/net/tcpstat; echo "tcpstat: $?"
DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install {image} {headers} >/tmp/apt.log 2>&1 || cat /tmp/apt.log
dkms status
"""
REFUSED = """\
uname -r
modprobe knetstat
test -e /proc/net/tcpstat; echo "tcpstat: $?"
dmesg | grep knetstat
"""
