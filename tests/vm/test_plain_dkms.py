# SPDX-License-Identifier: GPL-2.0-or-later
"""The same upgrades with DKMS alone, the module packaged as in the story: where the module is lost, and in which words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.vm import upgrade

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(3600)]

BOOTED = """\
uname -r
modprobe knetstat
journalctl -q --no-pager -b -k -o cat -g 'knetstat: .*(magic|size|symbol)'
head -n 1 /proc/net/tcpstat
"""
UPGRADE = """\
install {image} {headers}
dkms status
echo "for $(modinfo -k {new} -F vermagic knetstat)"
"""
MAGIC = "knetstat: version magic '{old} .*' should be '{new} "
SIZE = "knetstat: .gnu.linkonce.this_module section size must match the kernel's built struct module size at run time"


@pytest.mark.parametrize(
    ("suite", "kernels", "words"),
    [
        # A point release: the symbols' checksums are the same, and with MODVERSIONS nothing else counts. That is luck.
        ("bookworm", [("6.1", 0), ("6.1", 1), ("6.12", 0)], ["", SIZE]),
        ("trixie", [("6.12", -1), ("7", 0), ("7", 1)], [MAGIC, MAGIC]),
    ],
    ids=["bookworm", "trixie"],
)
def test_plain_dkms_loses_the_module(suite: str, kernels: list[tuple[str, int]], words: list[str], tmp_path: Path) -> None:
    machine = upgrade.machine(suite, kernels, tmp_path, story=True, debs=None)
    for number, kernel in enumerate(machine.kernels):
        names = {"release": kernel.release}
        script = BOOTED
        if number < len(words):
            new = machine.kernels[number + 1]
            script += UPGRADE
            names |= {"image": new.image, "headers": new.headers, "new": new.release}
        said = machine.boot(number, script, names)
        print(said.output)
        assert said.output.startswith(f"{kernel.release}\n"), said.console[-4000:]
        if expected := words[number - 1] if number else "":
            old = re.escape(machine.kernels[number - 1].release)
            assert re.search(expected.replace("{old}", old).replace("{new}", re.escape(kernel.release)), said.output)
            assert "could not insert 'knetstat': Exec format error" in said.output
            assert "head: " in said.output
        else:
            assert "\nRecv-Q Send-Q Local Address " in said.output
        if number < len(words):
            assert re.search(rf"^knetstat/\S+, {re.escape(new.release)}, x86_64: installed$", said.output, re.MULTILINE)
            assert f"\nfor {kernel.release} " in said.output, "it was compiled for the kernel that ran"
