# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole promise: a machine runs one kernel, apt installs another, it is rebooted, and the module is there.

The machine is a Debian with systemd, booted under QEMU from a disk; our packages, apt, dkms, the kernels and the reboots are
real. A machine goes through several kernels, one after the other, as one does in its life.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.vm import upgrade

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]


class Route(NamedTuple):
    """suite; whether the module is packaged as in the story; kernels: series as rig.Container.kernels takes them, and which of
    that series."""

    suite: str
    story: bool
    kernels: tuple[tuple[str, int], ...]


POINT, SERIES = (("6.1", 0), ("6.1", 1)), (("6.1", 1), ("6.12", 0))
# The first step is to a kernel without MODVERSIONS, the second between two of them.
SEVEN = (("6.12", -1), ("7", 0), ("7", 1))
# In `make test`: the story's packaging, between kernels whose symbols differ.
QUICK = Route("bookworm", True, SERIES)
SLOW = [
    Route("bookworm", True, POINT),
    Route("bookworm", False, (*POINT, SERIES[1])),
    Route("trixie", True, SEVEN),
    Route("trixie", False, SEVEN),
]

# After a boot nothing is typed but questions.
BOOTED = """\
uname -r
listen
until_said '{release} (next, running): ready ('
for file in tcp tcp6 udp udp6; do cat /proc/net/${file}stat || echo "no $file"; done
knetstatctl check --quiet running; echo "running: $?"
knetstatctl sockets tcp6 >/dev/null; echo "sockets: $?"
"""
# What the administrator does: installs a kernel. Everything else happens by itself.
UPGRADE = """\
install {image} {headers}
knetstatctl check --quiet {new}; echo "at once: $?"
until_said '{new} (next): ready ('
knetstatctl check --quiet; echo "next: $?"
dkms status
echo "for $(modinfo -k {new} -F vermagic knetstat)"
dpkg-query -W -f '${db:Status-Abbrev}\\n' {image} {headers}
journalctl -q --no-pager -b -o cat -u knetstatd | tail -n 30
"""
# Somebody takes the module out: it comes back; with `unloaded = "report"` it stays out, and that is said.
UNLOAD = """\
rmmod knetstat
until_said 'loaded again'
for i in $(seq 60); do [ -e /proc/net/udpstat ] && break; sleep 1; done
test -e /proc/net/udpstat; echo "back: $?"
mkdir -p /etc/knetstatd/knetstatd.toml.d
echo 'unloaded = "report"' >/etc/knetstatd/knetstatd.toml.d/50-test.toml
systemctl reload knetstatd; echo "reloaded: $?"
rmmod knetstat
until_said 'somebody unloaded it, and the configuration says to leave it out'
sleep 20
test -e /sys/module/knetstat; echo "stays out: $?"
knetstatctl status
"""


@pytest.mark.parametrize(
    "route",
    [
        pytest.param(route, marks=() if route is QUICK else (pytest.mark.slow,), id="-".join(
            [route.suite, *(series for series, _ in route.kernels), "story" if route.story else "well"]
        ))
        for route in (QUICK, *SLOW)
    ],
)  # fmt: skip
def test_the_module_is_there_after_the_upgrade_and_the_reboot(
    route: Route, packages_of: upgrade.PackagesOf, tmp_path: Path
) -> None:
    machine = upgrade.machine(route.suite, route.kernels, tmp_path, story=route.story, debs=packages_of(route.suite))
    for number, (kernel, new) in enumerate(zip(machine.kernels, (*machine.kernels[1:], None), strict=True)):
        names = {"release": kernel.release}
        if new is None:
            script = BOOTED + UNLOAD
        else:
            script = BOOTED + UPGRADE
            names |= {"image": new.image, "headers": new.headers, "new": new.release}
        said = machine.boot(number, script, names)
        print(said.output)
        assert said.code == 0, said.console[-4000:]
        assert "never said" not in said.output
        after_boot(said.output, kernel.release)
        if new is None:
            after_unloading(said.output)
        else:
            after_upgrade(said.output, new.release)
            assert "\nat once: 0\n" not in said.output or not route.story, "the hook's module is for the kernel that runs"


def after_boot(text: str, release: str) -> None:
    assert text.startswith(f"{release}\n")
    # The daemon has probed it, from its own network namespace.
    assert f"{release} (next, running): ready (" in text
    assert text.count("Recv-Q Send-Q Local Address           Foreign Address         Stat Diag Options\n") == 2
    assert text.count("Recv-Q Send-Q Local Address           Foreign Address         Options\n") == 2
    row = r"^ +0 +0 127\.0\.0\.1:4321 +0\.0\.0\.0:\* +LSTN +SO_REUSEADDR=0,SO_REUSEPORT=0,SO_KEEPALIVE=1,"
    assert re.search(row, text, re.MULTILINE)
    assert "\nrunning: 0\nsockets: 0\n" in text


def after_upgrade(text: str, new: str) -> None:
    assert "\nnext: 0\n" in text
    assert re.search(rf"^knetstat/\S+, {re.escape(new)}, x86_64: installed$", text, re.MULTILINE)
    assert f"\nfor {new} " in text
    assert text.count("ii \n") == 2


def after_unloading(text: str) -> None:
    assert "\nback: 0\nreloaded: 0\n" in text
    assert "\nstays out: 1\n" in text
