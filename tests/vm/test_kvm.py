# SPDX-License-Identifier: GPL-2.0-or-later
"""Where KVM can be used, rehearsals use it: in a machine whose emulated processor has AMD's virtualization."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.container import product, qemu, rig
from tests.vm import disk

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm

# First where everybody may use the device; then as Debian's udev leaves it, with what the unit's own text says for that.
SCRIPT = """\
modprobe kvm_amd || modprobe kvm_intel
chmod 666 /dev/kvm
knetstatctl rehearse --json
chown root:kvm /dev/kvm
chmod 660 /dev/kvm
mkdir -p /etc/systemd/system/knetstatd-rehearse@.service.d
printf '[Service]\\nSupplementaryGroups=kvm\\n' >/etc/systemd/system/knetstatd-rehearse@.service.d/kvm.conf
systemctl daemon-reload
knetstatctl rehearse --json
"""


def test_kvm_is_used(tmp_path: Path) -> None:
    with rig.container("bookworm", boot=False) as c:
        release = c.kernels()[0].release
        qemu.install(c)
        c.add_fixture("good", autoinstall=False)
        disk.prepare(c)
        c.run(["dkms", "install", "kt-good/1.0", "-k", release], check=True)
        product.install(c, ["kt-good"])
        image = disk.make(c, tmp_path)
    said = disk.boot(image, disk.kernel(image, release), SCRIPT, cpu="EPYC")
    assert said.code == 0, said.console[-4000:]
    found: list[dict[str, Any]] = [json.loads("{" + text) for text in ("\n" + said.output).split("\n{")[1:]]
    assert [(r["outcome"], r["machine"]) for each in found for r in each["rehearsals"]] == [("loaded", "KVM")] * 2, said.output
