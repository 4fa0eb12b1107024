# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel comes without its headers: red, and what is missing is named; fetched where the configuration asks for it; and after
the reboot, whenever they come. Where they go again, the module that is there is loaded all the same."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.vm import upgrade

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(3600)]

# Two kernels come: for the first the headers are installed by the daemon, for the second nobody does.
BEFORE = """\
until_said '{old} (next, running): ready ('
mkdir -p /etc/knetstatd/knetstatd.toml.d
echo 'headers = "install"' >/etc/knetstatd/knetstatd.toml.d/50-test.toml
systemctl reload knetstatd; echo "reloaded: $?"
install {fetched_image}
until_said '{fetched} (next): ready ('
knetstatctl check --quiet; echo "fetched: $?"
dpkg-query -W -f '${db:Status-Abbrev}\\n' {fetched_headers}
echo "for $(modinfo -k {fetched} -F vermagic knetstat)"
rm /etc/knetstatd/knetstatd.toml.d/50-test.toml
systemctl reload knetstatd; echo "reloaded: $?"
install {image}
until_said '{new} (next): headers-missing'
knetstatctl check; echo "missing: $?"
cat /run/knetstatd/motd
"""
# Rebooted all the same.
AFTER = """\
uname -r
until_said '{new} (next, running): headers-missing'
knetstatctl check running; echo "missing: $?"
head -n 1 /proc/net/tcpstat
install {headers}
until_said '{new} (next, running): ready ('
head -n 1 /proc/net/tcpstat
knetstatctl check --quiet running; echo "healed: $?"
journalctl -q --no-pager -b -o cat -u knetstatd
apt-get -q -y purge {headers} >/dev/null 2>&1; echo "purged: $?"
"""
# Without them the kernel's own image proves what is there.
GONE = """\
until_said '{new} (next, running): ready ('
head -n 1 /proc/net/tcpstat
knetstatctl check running; echo "proven: $?"
journalctl -q --no-pager -b -o cat -u knetstatd
"""


def test_headers_missing(packages_of: upgrade.PackagesOf, tmp_path: Path) -> None:
    debs = packages_of("bookworm")
    machine = upgrade.machine("bookworm", [("6.1", 0), ("6.1", 1), ("6.12", 0)], tmp_path, story=False, debs=debs)
    old, fetched, new = machine.kernels
    names = {"old": old.release, "new": new.release, "image": new.image, "headers": new.headers, "fetched": fetched.release}
    names |= {"fetched_image": fetched.image, "fetched_headers": fetched.headers}

    said = machine.boot(0, BEFORE, names)
    print(said.output)
    assert said.code == 0, said.console[-4000:]
    assert "never said" not in said.output
    assert said.output.count("reloaded: 0\n") == 2
    assert f"\nfetched: 0\nii \nfor {fetched.release} " in said.output
    red = said.output.partition("for ")[2]
    assert re.search(rf"is not ready.*apt install {re.escape(new.headers)}[;\n].*\nmissing: 1\n", red, re.DOTALL)
    assert new.headers in red.partition("missing: 1\n")[2], "whoever logs in is told"

    said = machine.boot(2, AFTER, names)
    print(said.output)
    assert said.code == 0, said.console[-4000:]
    assert said.output.startswith(f"{new.release}\n")
    assert "never said" not in said.output
    red, _, healed = said.output.partition("missing: 1\n")
    assert f"apt install {new.headers}" in red
    assert healed.startswith("head: ")
    assert "\nRecv-Q Send-Q Local Address " in healed
    assert "\nhealed: 0\n" in healed
    assert f"\nknetstat {upgrade.version()} for {new.release}: loaded\n" in healed, "for the first time in this boot"
    assert healed.endswith("\npurged: 0\n")

    said = machine.boot(2, GONE, names)
    print(said.output)
    assert said.code == 0, said.console[-4000:]
    assert "never said" not in said.output
    assert "Recv-Q Send-Q Local Address " in said.output
    assert "\nproven: 0\n" in said.output
    assert f"\nknetstat {upgrade.version()} for {new.release}: loaded\n" in said.output
