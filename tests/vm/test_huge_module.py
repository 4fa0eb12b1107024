# SPDX-License-Identifier: GPL-2.0-or-later
"""A driver of 88 MB under the limits of the daemon's unit: it is read, the watchdog is answered, and nobody is killed.

Only a virtual machine shows it on every host: it has version 2 of cgroups, and no swap.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.container import huge, packages, rig
from tests.vm import disk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm

SUITE = "trixie"  # its dkms packs modules as xz
# The daemon alone is to read it: a check by root would keep what it read.
SCRIPT = """\
for i in $(seq 300); do grep -qs '"state"' /run/knetstatd/status.json && break; sleep 2; done
group=/sys/fs/cgroup$(systemctl show -P ControlGroup knetstatd.service)
echo "restarts=$(systemctl show -P NRestarts knetstatd.service)"
echo "peak=$(cat $group/memory.peak)"
sed 's/^/memory./; s/ /=/' $group/memory.events
sed -n 's/usage_usec /cpu=/p' $group/cpu.stat
echo "left=$(find /var/lib/knetstatd/guard -type f -size +1000 | wc -l)"
echo "read=$(ls /run/knetstatd/readings | wc -l)"
echo "up=$(cut -d. -f1 /proc/uptime)"
cat /run/knetstatd/status.json
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_daemons_limits_are_enough_for_a_huge_module(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    debs = packages.build(SUITE, tmp_path / "packages").debs()
    with rig.container(SUITE, boot=False) as c:
        kernel = c.kernels()[0]
        disk.prepare(c)
        huge.install(c, kernel)
        c.write("/etc/knetstatd/knetstatd.toml.d/50-test.toml", f'modules = ["{huge.PACKAGE}"]\n')
        for deb in debs:
            c.path(f"/root/{deb.name}").write_bytes(deb.read_bytes())
        c.run(["sh", "-c", "apt-get -q -y install /root/knetstatd_*.deb"], check=True, timeout=600)
        image = disk.make(c, tmp_path)
    said = disk.boot(image, disk.kernel(image, kernel.release), SCRIPT, timeout=1200)
    assert said.code == 0, said.console[-3000:]
    told, _, document = said.output.partition("{")
    values = {name: int(value) for name, value in re.findall(r"^([\w.]+)=(\d+)$", told, re.MULTILINE)}
    print(values)
    [verdict] = json.loads("{" + document)["verdicts"]
    assert (verdict["package"], verdict["state"]) == (huge.PACKAGE, "ready"), verdict
    assert values["restarts"] == values["memory.oom_kill"] == values["memory.max"] == 0
    assert values["peak"] < 256 << 20
    assert values["left"] == 0, "what was unpacked is gone"
    assert values["read"] == 1
