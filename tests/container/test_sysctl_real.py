# SPDX-License-Identifier: GPL-2.0-or-later
"""Which configurations close the kernel for modules: systemd-sysctl of both suites is asked what it would set."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from knetstatd.machine import modprobe_conf

from . import roots

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.container

PLACES = ("etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d")
LINES = (
    "kernel.modules_disabled=1", "kernel/modules_disabled = 1", "-kernel.modules_disabled=1", "kernel.modules_disabled=0",
    "kernel.modules_*=1", "kernel/modules_* = 0x1", "*.modules_disabled=1", "*=1", "kernel.*=01", "kernel.?odules_disabled=1",
    "kernel.[^a-l]odules_disabled=1", "kernel.[!m]odules_disabled=1", "kernel.[m]odules_disabled=2", "-kernel.modules_disabled",
    "- kernel.modules_disabled", "-kernel.modules_*", "kernel.modules_disabled", "/kernel/modules_disabled=1",
    ".kernel.modules_disabled=1", "kernel//modules_disabled=1", "kernel.modules_disabled=1 # yes", "#kernel.modules_disabled=1",
    ";kernel.modules_disabled=1", "kernel.modules_disabled=1=1", "kernel.modules/disabled=1", "kernel/modules.disabled=1",
    "kernel.modules_disabled=-1", "kernel.modules_disabled=10", "kernel.modules_disabled=", "x.y=1",
)  # fmt: skip
# tmpfs stands for the directories and for /proc/sys: nothing of the root or of this machine is changed.
ASK = """
for place in etc/sysctl.d run usr/local/lib usr/lib/sysctl.d proc; do mount -t tmpfs none "$1/$place" || exit 9; done
cp -dR "$2/." "$1/" && exec chroot "$1" env SYSTEMD_LOG_LEVEL=debug SYSTEMD_LOG_TARGET=console /usr/lib/systemd/systemd-sysctl
"""


def trees() -> list[dict[str, str]]:
    """Each line alone, each pair of lines, and files that hide each other."""
    made = [{"etc/sysctl.d/a.conf": line} for line in LINES]
    chosen = random.Random(15)
    pairs = list(itertools.product(LINES, repeat=2))
    for one, two in chosen.sample(pairs, 60):
        places = chosen.choices(PLACES, k=2)
        names = chosen.choices(("a.conf", "b.conf", ".c.conf", "d.txt"), weights=(4, 4, 1, 1), k=2)
        made.append({f"{places[0]}/{names[0]}": one, f"{places[1]}/{names[1]}": two})
    made += [{"usr/lib/sysctl.d/a.conf": LINES[0], f"{place}/a.conf": f"-> {to}"} for place in PLACES[:3]
             for to in ("/dev/null", "/nowhere", "../../etc/sysctl.d/b.conf")]  # fmt: skip
    return made


def is_closed(root: Path, tree: Path) -> bool:
    """Whether systemd-sysctl would write a 1."""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", ASK, "sh", os.fspath(root), os.fspath(tree)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    values = re.findall(r"Setting '/proc/sys/+kernel/+modules_disabled' to '(.*)'", done.stderr)
    return any(re.fullmatch("0*1|0[xX]0*1", value.split()[0]) for value in values if value.split())


@pytest.mark.parametrize("suite", sorted(roots.PICKS))
def test_what_closes_the_kernel(suite: str, tmp_path: Path) -> None:
    root = roots.root(suite)
    differ, closed, cases = [], 0, trees()
    with roots.in_use(root):
        for number, files in enumerate(cases):
            tree = tmp_path / str(number)
            for place, text in {**files, "proc/sys/kernel/modules_disabled": "0\n"}.items():
                path = tree / place
                path.parent.mkdir(parents=True, exist_ok=True)
                if text.startswith("-> "):
                    path.symlink_to(text[3:])
                else:
                    path.write_text(text + "\n")
            theirs, ours = is_closed(root.path / "root", tree), bool(modprobe_conf.rules(tree).closed)
            closed += theirs
            if theirs is not ours:
                differ.append((files, theirs))
    print(f"\n{suite}: {len(cases)} configurations, {closed} close the kernel; otherwise than we say: {differ}")
    assert closed > 20
    assert differ == []
