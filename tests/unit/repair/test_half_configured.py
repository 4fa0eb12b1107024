# SPDX-License-Identifier: GPL-2.0-or-later
"""Who keeps a half-configured kernel package from being finished; that it is finished is shown in the containers."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from knetstatd.core import config
from knetstatd.repair import apply, find, repairs
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

K = "6.1.0-9-amd64"
MORE = "Version: 1\nArchitecture: all\nMaintainer: x <x@x.x>\nDescription: x\n\n"
BASE = {
    f"lib/modules/{K}/modules.builtin": "", f"lib/modules/{K}/modules.dep": "", f"boot/vmlinuz-{K}": "image",
    "usr/src/m-1/dkms.conf": 'PACKAGE_NAME="m"\nPACKAGE_VERSION="1"\nDEST_MODULE_LOCATION[0]="/updates"\nAUTOINSTALL=yes\n',
    "var/lib/dkms/m/1/source": "-> /usr/src/m-1", "proc/self/mountinfo": "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n",
    "proc/locks": "",
    "var/lib/dpkg/status": f"Package: linux-image-{K}\nStatus: install ok half-configured\n{MORE}"
    f"Package: m-dkms\nStatus: install ok installed\n{MORE}", f"var/lib/dpkg/info/linux-image-{K}.list": "/.\n",
    "var/lib/dpkg/info/m-dkms.list": "/.\n/usr/src/m-1/dkms.conf\n",
}  # fmt: skip


def look(root: Path) -> tuple[Machine, dict[str, repairs.Repair]]:
    machine = Machine(root, config.Config(modules=("m",), kernels="all", settle_seconds=0.0))
    machine.refresh()
    return machine, {found.kind: found for found in find.plan(machine, K)}


@pytest.mark.spawns
def test_who_is_in_the_way_is_named_with_the_three_ways_out(tree: Make, capsys: pytest.CaptureFixture[str]) -> None:
    machine, found = look(tree(BASE))
    row = found["configure"]
    assert row.is_advice
    said = "\n".join(apply.lines(row))
    for words in (
        "m is in the way", f"linux-image-{K} is half-configured", f"supports {K}, then: knetstatctl build {K}",
        f"echo 'AUTOINSTALL=\"\"' >/etc/dkms/m-1-{K}.conf && knetstatctl repair {K}", "apt-get remove m-dkms",
    ):  # fmt: skip
        assert words in said, said
    arguments = argparse.Namespace(all=False, yes=True, json=False, dry_run=False)
    code, document = apply.command(arguments, machine, [K])
    assert (code, [r["outcome"] for r in document["repairs"] if r["kind"] == "configure"]) == (1, ["to do"])
    assert "Nothing to repair." not in capsys.readouterr().out


@pytest.mark.spawns
def test_an_administrators_decision_lets_it_be_finished(tree: Make) -> None:
    root = tree({**BASE, f"etc/dkms/m-1-{K}.conf": 'AUTOINSTALL=""\n'})
    _, found = look(root)
    assert found["configure"].acts == (repairs.Run(("dpkg", "--configure", f"linux-image-{K}"), hold=True),)
    (root / f"etc/dkms/m-1-{K}.conf").write_text("MAKE=x\n")
    _, found = look(root)
    assert found["configure"].is_advice
