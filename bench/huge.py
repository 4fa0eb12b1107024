# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl check` of a package with a module of 88 MB, as large as the largest driver known: read for the first time, and then
again; with the time that unpacking alone takes beside it."""

from __future__ import annotations

import statistics

from tests.container import huge

from . import box
from .box import Side
from .table import Row, ratio, seconds

SUITE = "trixie"  # its dkms packs modules as xz, which takes the longest to unpack
# Times xz's own CPU time, seconds of it, MiB. It is to be 1.5 s cold, too, which xz alone exceeds on many machines.
_COLD, _WARM, _MEMORY = 1.5, 0.2, 64.0
# CPU time, and the largest memory of a process of its own.
_PEAK = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `huge`; the suite is always the one whose dkms packs."""
    with box.box(SUITE) as c:
        box.install(c, [huge.PACKAGE])
        file = huge.install(c, c.kernels()[0])
        forget = ["rm", "-rf", "/run/knetstatd-build/readings"]
        check = [*box.CTL, "check"]
        sides = {
            "cold": Side(check, [forget]),
            "warm": Side(check),
            "xz": Side(["sh", "-c", f"xz -dc {file} >/dev/null"]),
            "peak": Side([*box.PYTHON, "-c", _PEAK, *check], [forget]),
        }
        found = box.alternate(c, sides, rounds)
        assert all("is ready" in sample.out for sample in found["cold"]), found["cold"][0].out
        packed = c.path(file).stat().st_size >> 20
    cold, warm, alone = (box.cpu(found[name]) for name in ("cold", "warm", "xz"))
    peak = statistics.median(float(sample.out) for sample in found["peak"])
    what = f"knetstatctl check, a module of 88 MB in {packed} MB of xz, and two that need it"
    beside = f"xz -dc {seconds(alone)}"
    return [
        Row(f"{what}: cold", seconds(cold), beside, ratio(cold, alone), "cpu", f"{_COLD:g} x", cold < _COLD * alone),
        Row("  the same again", seconds(warm), beside, ratio(warm, alone), "cpu", seconds(_WARM), warm < _WARM),
        Row("  its memory, cold", f"{peak:.0f} MiB", "", "-", "rss", f"{_MEMORY:.0f} MiB", peak < _MEMORY),
    ]
