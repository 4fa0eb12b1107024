# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines that are about to get a kernel: a Debian with one kernel and knetstat for it, and newer kernels in apt's repository.

What is slow and not in question is done in a container: the first kernel, its module, and what the headers of the newer ones
depend on. The kernels themselves come in the machine, by apt.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from tests.container import packages, rig
from tests.vm import disk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.container.rig import Container, Kernel

SOURCE = Path(__file__).parents[2]
PackagesOf = Callable[[str], packages.Packages]

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
# Functions for the scripts that a machine runs: what apt says is shown where it fails; `until_said` waits for a line of the
# daemon's in this boot's journal and shows it (asking knetstatctl again and again would keep an emulated processor from what it
# waits for); `listen` opens a socket, for the module to show.
FUNCTIONS = """\
export DEBIAN_FRONTEND=noninteractive
install() { apt-get -q -y -o Dpkg::Use-Pty=0 install "$@" >/tmp/apt.log 2>&1 || cat /tmp/apt.log; }
said() { journalctl -q --no-pager -b -o cat -u knetstatd | grep -F -e "$1" | tail -n 1; }
until_said() { for i in $(seq 200); do said "$1" | grep . && return; sleep 2; done; echo "never said: $1"; }
listen() { python3 -c '
import socket, time
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1); s.bind(("127.0.0.1", 4321)); s.listen()
time.sleep(10000)' &
until grep -q ':10E1 ' /proc/net/tcp; do sleep 1; done; }
"""


class Machine(NamedTuple):
    """A disk; the kernel that is installed on it, then those that can be."""

    image: Path
    kernels: tuple[Kernel, ...]

    def boot(
        self, number: int, script: str, names: Mapping[str, str], *, timeout: float = 1500.0, show: TextIO | None = None
    ) -> disk.Said:
        """Boots a kernel of these and runs a script, in which FUNCTIONS are there and {name} stands for its value."""
        kernel = disk.kernel(self.image, self.kernels[number].release)
        for name, value in names.items():
            script = script.replace(f"{{{name}}}", value)
        return disk.boot(self.image, kernel, FUNCTIONS + script, timeout=timeout, show=show)


def version() -> str:
    """Of the bundled module."""
    found = re.search(r'PACKAGE_VERSION="(.*)"', (SOURCE / "module/dkms.conf").read_text())
    assert found is not None
    return found[1]


def register_as_in_the_story(c: Container) -> None:
    target = c.path(f"/usr/src/knetstat-{version()}")
    shutil.copytree(SOURCE / "module", target)
    (target / "Kbuild").unlink()
    (target / "Makefile").write_text(STORY_MAKEFILE)
    (target / "dkms.conf").write_text(STORY_CONF.format(version=version()))
    c.run(["dkms", "add", f"knetstat/{version()}"], check=True)


def apt(c: Container, *words: str) -> None:
    """apt-get as a script would call it, with all its words; fails where it fails."""
    c.run(["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", *words], check=True, timeout=600)


def install_debs(c: Container, debs: Iterable[Path]) -> None:
    """apt install ./knetstatd_*.deb ..."""
    apt(c, "install", *("/root/" + os.path.basename(shutil.copy(deb, c.path("/root"))) for deb in debs))


def machine(
    suite: str, picks: Sequence[tuple[str, int]], directory: Path, *, story: bool, debs: packages.Packages | None
) -> Machine:
    """picks: kernels, as (series as rig.Container.kernels takes it, which of that series). story: packaged as in the story,
    else as we do, by knetstat-dkms. debs: our packages, installed with no configuration; with None, dkms is alone."""
    with rig.container(suite, boot=False, first_kernel=False) as c:
        disk.prepare(c)
        first, *later = kernels = [c.kernels(series)[number] for series, number in picks]
        c.set_running(first)
        c.install_kernel(first)
        for kernel in later:
            c.install_kernel(kernel)
            own = c.output("dpkg-query", "-W", "-f=${Package} ", f"linux-*-{kernel.release}")
            apt(c, "purge", *own.split())
        if story:
            register_as_in_the_story(c)
        if debs is None:
            c.run(["dkms", "install", f"knetstat/{version()}", "-k", first.release], check=True, timeout=300)
            c.write("/etc/modules-load.d/knetstat.conf", "knetstat\n")
        else:
            install_debs(c, [deb for deb in debs.debs() if not (story and deb.name.startswith("knetstat-dkms"))])
            c.run(["knetstatctl", "build", first.release], check=True, timeout=300)
        disk.keep_repository(c)
        return Machine(disk.make(c, directory), tuple(kernels))
