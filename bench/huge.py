# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl check` of a package with a module of 80 MB, as large as the largest driver known: read for the first time, and then
again; with the time that unpacking alone takes beside it."""

from __future__ import annotations

import random
import statistics
from typing import TYPE_CHECKING

from . import box
from .box import Side
from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from tests.container.rig import Container

SUITE = "trixie"  # its dkms packs modules as xz, which takes the longest to unpack
_NOISE, _TABLE = 48 << 20, 1 << 20  # bytes that hardly pack; pointers, each with a relocation: 32 MB
_COLD, _WARM, _MEMORY = 1.5, 0.2, 64.0  # s of CPU time, MiB
_NAMES = ("kt_huge", "kt_leaf", "kt_twig")
_HUGE = f"""\
#include <linux/module.h>
asm(".pushsection .rodata\\n"
    "kt_noise: .incbin \\"" NOISE "\\"\\n"
    ".popsection\\n"
    ".pushsection .data\\n"
    "kt_table: .rept {_TABLE}\\n .quad kt_noise + 8\\n .endr\\n"
    ".popsection");
int kt_huge(void) {{ return 1; }}
EXPORT_SYMBOL(kt_huge);
MODULE_LICENSE("GPL");
"""
_OTHER = """\
#include <linux/module.h>
int kt_huge(void);
static int __init start(void) { return kt_huge() - 1; }
module_init(start);
MODULE_LICENSE("GPL");
"""
_CONF = """\
PACKAGE_NAME="kt-huge"
PACKAGE_VERSION="1.0"
MAKE[0]="make -C ${kernel_source_dir} M=${dkms_tree}/kt-huge/1.0/build modules"
CLEAN="true"
"""
# CPU time, and the largest memory of a process of its own.
_PEAK = """\
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""


def add(c: Container, kernel: str) -> str:
    """Makes the package and has plain dkms install it; returns its module's file, as the container sees it."""
    source = "/usr/src/kt-huge-1.0"
    c.write(f"{source}/kt_huge.c", _HUGE)
    for name in _NAMES[1:]:
        c.write(f"{source}/{name}.c", _OTHER)
    c.path(f"{source}/noise.bin").write_bytes(random.Random(1).randbytes(_NOISE))
    objects = " ".join(f"{name}.o" for name in _NAMES)
    c.write(f"{source}/Makefile", f"obj-m := {objects}\nccflags-y := -DNOISE='\"$(src)/noise.bin\"'\n")
    modules = "".join(
        f'BUILT_MODULE_NAME[{n}]="{name}"\nDEST_MODULE_LOCATION[{n}]="/updates/dkms"\n' for n, name in enumerate(_NAMES)
    )
    c.write(f"{source}/dkms.conf", _CONF + modules)
    c.run(["dkms", "add", "kt-huge/1.0"], check=True)
    c.run(["dkms", "install", "kt-huge/1.0", "-k", kernel], check=True, timeout=1800)
    return f"/lib/modules/{kernel}/updates/dkms/kt_huge.ko.xz"


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `huge`; the suite is always the one whose dkms packs."""
    with box.box(SUITE) as c:
        kernel = c.kernels()[0].release
        box.install(c, ["kt-huge"])
        file = add(c, kernel)
        forget = ["rm", "-rf", "/run/knetstatd-build/readings"]
        check = [*box.CTL, "check"]
        sides = {
            "cold": Side(check, [forget]),
            "warm": Side(check),
            "xz": Side(["sh", "-c", f"xz -dc {file} >/dev/null"]),
            "peak": Side([*box.PYTHON, "-c", _PEAK, *check], [forget]),
        }
        found = box.alternate(c, sides, rounds)
        assert all("Safe to reboot" in sample.out for sample in found["cold"]), found["cold"][0].out
        packed = c.path(file).stat().st_size >> 20
    cold, warm, alone = (box.cpu(found[name]) for name in ("cold", "warm", "xz"))
    peak = statistics.median(float(sample.out) for sample in found["peak"])
    what = f"knetstatctl check, a module of 80 MB in {packed} MB of xz, and two that need it"
    beside = f"xz -dc {seconds(alone)}"
    return [
        Row(f"{what}: cold", seconds(cold), beside, ratio(cold, alone), "cpu", seconds(_COLD), cold < _COLD),
        Row("  the same again", seconds(warm), beside, ratio(warm, alone), "cpu", seconds(_WARM), warm < _WARM),
        Row("  its memory, cold", f"{peak:.0f} MiB", "", "-", "rss", f"{_MEMORY:.0f} MiB", peak < _MEMORY),
    ]
