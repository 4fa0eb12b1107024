# SPDX-License-Identifier: GPL-2.0-or-later
"""Stage, verify and publish for one kernel, against plain make and against dkms; the time in dkms's shared tree."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd import __version__

from . import box
from .box import Side
from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from tests.container.rig import Container

_LIMIT, _SHARED = 1.6, 0.6
MODULE = Path(__file__).parents[1] / "module"
PACKAGE = f"knetstat/{__version__}"
_LOG = "/run/bench-dkms"
# In front of dkms on our PATH: notes when each command began and ended, and its CPU time.
_WRAPPER = f"""#!/bin/bash
TIMEFORMAT="$1 $EPOCHREALTIME %R %U %S"
{{ time /usr/sbin/dkms "$@" 2>&3 ; }} 3>&2 2>>{_LOG}
"""


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `build` and `shared`."""
    with box.box(suite) as c:
        kernel = c.kernels()[0].release
        _register(c)
        box.install(c, ["knetstat"])
        rows = _build(c, kernel, rounds)
        return [*rows, _shared(c, kernel, rounds)]


def _register(c: Container) -> None:
    """The bundled module, in DKMS: what the product builds where nothing else is configured."""
    shutil.copytree(MODULE, c.path(f"/usr/src/{PACKAGE.replace('/', '-')}"))
    c.run(["dkms", "add", PACKAGE], check=True)


def _forget(kernel: str) -> list[list[str]]:
    script = f"dkms unbuild {PACKAGE} -k {kernel} || true; rm -rf /var/lib/knetstatd /tmp/make; test ! -e $0 && test ! -e $1"
    places = [f"/var/lib/dkms/{PACKAGE}/{kernel}", f"/lib/modules/{kernel}/updates/dkms/knetstat.ko"]
    copy = f"cp -r /usr/src/{PACKAGE.replace('/', '-')} /tmp/make; sync"
    return [["sh", "-c", script, *places], ["sh", "-c", copy]]


def _build(c: Container, kernel: str, rounds: int) -> list[Row]:
    before = _forget(kernel)
    sides = {
        "make": Side(["sh", "-c", f"make -j$(nproc) -C /lib/modules/{kernel}/build M=/tmp/make modules"], before),
        "ours": Side([*box.CTL, "build", kernel], before),
        "dkms": Side(["/usr/sbin/dkms", "install", PACKAGE, "-k", kernel], before),
    }
    found = box.alternate(c, sides, rounds)
    make, ours, dkms = (found[name] for name in sides)
    spent, peer = box.wall(ours), box.wall(make)
    what = "stage, verify and publish for one kernel"
    return [
        Row(what, seconds(spent), f"make {seconds(peer)}", ratio(spent, peer), "wall", f"{_LIMIT} x make", spent <= _LIMIT * peer),
        Row(
            "  the same", seconds(box.cpu(ours)), f"make {seconds(box.cpu(make))}", ratio(box.cpu(ours), box.cpu(make)), "cpu",
            short=False,
        ),
        Row(
            "  the same", seconds(spent), f"dkms install {seconds(box.wall(dkms))}", ratio(spent, box.wall(dkms)), "wall",
            short=False,
        ),
        Row(
            "  dkms install alone", seconds(box.wall(dkms)), f"make {seconds(peer)}", ratio(box.wall(dkms), peer), "wall",
            short=False,
        ),
    ]  # fmt: skip


def _shared(c: Container, kernel: str, rounds: int) -> Row:
    """From the start of `dkms ldtarball` to the end of `dkms install`; the peer is all of a plain `dkms install`."""
    c.write("/usr/local/sbin/dkms", _WRAPPER, 0o755)
    log = f"cat {_LOG}; rm {_LOG}"
    before = [*_forget(kernel), ["rm", "-f", _LOG]]
    sides = {
        "ours": Side(["sh", "-c", f"{' '.join(box.CTL)} build {kernel} >/dev/null && {log}"], before),
        "dkms": Side(["/usr/sbin/dkms", "install", PACKAGE, "-k", kernel], _forget(kernel)),
    }
    found = box.alternate(c, sides, rounds)
    c.path("/usr/local/sbin/dkms").unlink()
    walls, cpus = zip(*(_span(sample.out) for sample in found["ours"]), strict=True)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    peer = box.wall(found["dkms"])
    shown = f"{seconds(wall)} (cpu {seconds(cpu)})"
    what = "time in dkms's shared tree"
    return Row(what, shown, f"dkms install {seconds(peer)}", ratio(wall, peer), "wall", f"{_SHARED} s", wall < _SHARED)


def _span(log: str) -> tuple[float, float]:
    """Wall and CPU time of what touched the shared trees."""
    begin = end = cpu = 0.0
    for line in log.splitlines():
        verb, start, took, user, system = line.split()
        if verb in ("ldtarball", "install"):
            begin = begin or float(start)
            end = float(start) + float(took)
            cpu += float(user) + float(system)
    assert end, log
    return end - begin, cpu
