# SPDX-License-Identifier: GPL-2.0-or-later
"""The idle daemon: its memory against a bare interpreter with the same four packages, its CPU time, its wake-ups."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from tests.container import product

from . import box
from .table import Row, ratio

if TYPE_CHECKING:
    from tests.container.rig import Container

MINUTE = 60.0
_LIMIT = 1.2
# What the daemon cannot do without, and nothing else. The bracket keeps pgrep from finding itself.
_BARE = """
import pyudev, sdnotify, time
import systemd.journal
from inotify_simple import INotify
keep = INotify(nonblocking=True), sdnotify.SystemdNotifier(), pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
keep[2].start()
bench_peer = time.sleep(900)
"""


class Memory:
    """What the kernel says of a process's memory, in KiB."""

    def __init__(self, c: Container, pid: str) -> None:
        text = c.run(["cat", f"/proc/{pid}/smaps_rollup"], check=True).stdout
        found = {key: int(value) for key, value in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
        self.rss, self.pss, self.anonymous = found["Rss"], found["Pss"], found["Anonymous"]


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `idle`. Memory is compared at one moment; nothing is repeated."""
    with box.box(suite, boot=True) as c:
        c.add_fixture("good", autoinstall=False)
        box.install(c, ["kt-good"])
        kernel = c.kernels()[0].release
        c.run([*box.CTL, "build", kernel], check=True)
        c.set_loaded("kt_good", c.output("modinfo", "-k", kernel, "-F", "srcversion", "kt_good"))
        c.start_product()
        product.wait("the daemon has looked", lambda: "ready" in product.kinds(c, kernel=kernel))
        pid = c.output("systemctl", "show", "-p", "MainPID", "--value", "knetstatd.service")
        bare = c.start([*box.PYTHON, "-c", _BARE])
        peer = str(product.wait("the peer", lambda: c.run(["pgrep", "-f", "^/usr/bin/python3 .*[b]ench_peer"]).stdout.strip()))
        time.sleep(5)
        rows = _memory(Memory(c, pid), Memory(c, peer))
        bare.end()
        return [*rows, *_minute(c, pid)]


def _memory(ours: Memory, peer: Memory) -> list[Row]:
    def row(name: str, a: int, b: int, *, judged: bool = False) -> Row:
        budget, met = (f"{_LIMIT} x", a <= _LIMIT * b) if judged else ("", None)
        shown = f"bare python3, four packages {b / 1024:.1f} MiB"
        return Row(
            "idle memory" if judged else "  the same", f"{a / 1024:.1f} MiB", shown, ratio(a, b), name, budget, met, judged
        )

    return [
        row("rss", ours.rss, peer.rss, judged=True),
        row("pss", ours.pss, peer.pss),
        row("anonymous", ours.anonymous, peer.anonymous),
    ]


def _minute(c: Container, pid: str) -> list[Row]:
    before = _spent(c, pid)
    time.sleep(MINUTE)
    cpu, waking = (b - a for a, b in zip(before, _spent(c, pid), strict=True))
    dogs = _watchdog(c)
    allowed = round(MINUTE / dogs) + 1 if dogs else 0
    return [
        Row("CPU time in an idle minute", f"{cpu / 100:.2f} s", "", "-", "cpu", "0.00 s", cpu == 0),
        Row(
            "wake-ups in an idle minute", str(waking), f"watchdog {allowed}", "-", "count", "the watchdog's", waking <= allowed
        ),
    ]


def _spent(c: Container, pid: str) -> tuple[int, int]:
    """CPU time in ticks, and how often it went to sleep."""
    stat = c.run(["cat", f"/proc/{pid}/stat"], check=True).stdout.rpartition(")")[2].split()
    switches = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", c.run(["cat", f"/proc/{pid}/status"]).stdout, re.MULTILINE)
    assert switches is not None
    return int(stat[11]) + int(stat[12]), int(switches[1])


def _watchdog(c: Container) -> float:
    """Seconds between its signs of life, 0 where none are wanted."""
    found = c.output("systemctl", "show", "-p", "WatchdogUSec", "--value", "knetstatd.service")
    units = {"min": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+)(min|s|ms)", found)
    return sum(int(value) * units[unit] for value, unit in parts) / 2
