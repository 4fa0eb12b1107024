# SPDX-License-Identifier: GPL-2.0-or-later
"""The idle service, installed from its packages, over ten minutes, as its cgroup has it: its memory against a bare interpreter with
the same four packages, its CPU time, and its wake-ups.

Memory in a virtual machine, where a cgroup counts it on every host. CPU time in a container meanwhile: an emulated processor would
need many times as much.
"""

from __future__ import annotations

import re
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.container import packages, product, rig, roots
from tests.vm import disk

from .table import Row, ratio

MINUTES = 10
_LIMIT = 1.2
# Seconds in a minute: 0.00, less than half of the last digit.
_CPU_LIMIT = 0.005
# What the daemon cannot do without, and nothing else.
_BARE = """
import pyudev, sdnotify, time
import systemd.journal
from knetstatd._vendor.inotify_simple import INotify
keep = INotify(nonblocking=True), sdnotify.SystemdNotifier(), pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
keep[2].start()
time.sleep(10000)
"""
_SCRIPT = f"""\
memory() {{
    sed -n "s/^\\(Rss\\|Pss\\): */$1.\\1=/p" /proc/$(systemctl show -P MainPID $1)/smaps_rollup
    group=/sys/fs/cgroup$(systemctl show -P ControlGroup $1)
    sed -n "s/^\\(anon\\|file_mapped\\) /$1.\\1=/p" $group/memory.stat
    echo "$1.current=$(cat $group/memory.current)"
}}
for i in $(seq 100); do knetstatctl check --quiet running && break; sleep 3; done
echo "check=$?"
systemd-run -q -u bare.service /usr/bin/python3 -I /root/bare.py
sleep {MINUTES * 60}
memory knetstatd.service
memory bare.service
"""


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `idle`. Memory is compared at one moment; nothing is repeated."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=roots.cache_dir()) as name:
        directory = Path(name)
        (directory / "packages").mkdir()
        debs = packages.build(suite, directory / "packages").debs()
        with rig.container(suite, boot=False, first_kernel=False) as c:
            disk.prepare(c)
            kernel = c.kernels("6.1" if suite == "bookworm" else "6.12")[0]
            c.set_running(kernel)
            c.install_kernel(kernel)
            _install(c, debs)
            c.run(["knetstatctl", "build", kernel.release], check=True, timeout=300)
            c.write("/root/bare.py", _BARE)
            image = disk.make(c, directory)
        with rig.container(suite) as c:
            c.add_fixture("good", autoinstall=False)
            c.write("/etc/knetstatd/knetstatd.toml.d/50-bench.toml", 'modules = ["kt-good"]\n')
            _install(c, debs)
            product.wait_ready(c)
            time.sleep(30)
            before = _spent(c)
            said = disk.boot(image, disk.kernel(image, kernel.release), _SCRIPT, timeout=MINUTES * 60 + disk.TIMEOUT)
            rows = _waking(c, before, _spent(c))
    found = dict(re.findall(r"^([\w.]+)=(.*)$", said.output, re.MULTILINE))
    if found.get("check") != "0" or said.code:
        raise RuntimeError(f"the machine did not do it:\n{said.console[-4000:]}")
    return [*_memory(found), *rows]


def _install(c: rig.Container, debs: list[Path]) -> None:
    for deb in debs:
        c.path(f"/root/{deb.name}").write_bytes(deb.read_bytes())
    c.run(["sh", "-c", "apt-get -q -y install /root/*.deb"], check=True, timeout=600)


def _memory(found: dict[str, str]) -> list[Row]:
    def of(unit: str, key: str) -> float:
        value, _, kib = found[f"{unit}.service.{key}"].partition(" ")
        return int(value) / (1 << 10 if kib else 1 << 20)

    rows: list[Row] = []
    for key, name in (("Rss", "rss"), ("Pss", "pss"), ("anon", "cgroup, anonymous"), ("current", "cgroup, with page cache")):
        ours, peer = of("knetstatd", key), of("bare", key)
        what, shown = "  the same" if rows else "idle memory", f"bare python3, four packages {peer:.1f} MiB"
        judged = key == "Rss"
        budget, met = (f"{_LIMIT} x", ours <= _LIMIT * peer) if judged else ("", None)
        rows.append(Row(what, f"{ours:.1f} MiB", shown, ratio(ours, peer), name, budget, met, judged))
    # Of the page cache what is mapped: the pages that nobody else had read before.
    ours, peer = of("knetstatd", "anon") + of("knetstatd", "file_mapped"), of("bare", "Rss")
    shown = f"bare python3, four packages {peer:.1f} MiB (rss)"
    rows.append(
        Row(
            "  the same",
            f"{ours:.1f} MiB",
            shown,
            ratio(ours, peer),
            "cgroup, anonymous and mapped",
            f"{_LIMIT} x",
            ours <= _LIMIT * peer,
        )
    )
    return rows


class _Spent(NamedTuple):
    when: float
    cpu: float
    waking: int


def _spent(c: rig.Container) -> _Spent:
    """CPU time in seconds, from the service's cgroup, and how often the daemon went to sleep."""
    group = c.output("systemctl", "show", "-P", "ControlGroup", "knetstatd.service")
    stat = c.run(
        ["sh", "-c", f"cat /sys/fs/cgroup/unified{group}/cpu.stat || cat /sys/fs/cgroup{group}/cpu.stat"], check=True
    ).stdout
    pid = c.output("systemctl", "show", "-P", "MainPID", "knetstatd.service")
    status = c.run(["cat", f"/proc/{pid}/status"], check=True).stdout
    usec, switches = (
        re.search(r"^usage_usec (\d+)", stat, re.MULTILINE),
        re.search(r"^voluntary_\w+:\s+(\d+)", status, re.MULTILINE),
    )
    assert usec is not None
    assert switches is not None
    return _Spent(time.monotonic(), int(usec[1]) / 1e6, int(switches[1]))


def _waking(c: rig.Container, before: _Spent, after: _Spent) -> list[Row]:
    minutes = (after.when - before.when) / 60
    cpu, waking = after.cpu - before.cpu, after.waking - before.waking
    dogs = _watchdog(c.output("systemctl", "show", "-P", "WatchdogUSec", "knetstatd.service"))
    allowed = round(minutes * 60 / dogs) + 1 if dogs else 0
    return [
        Row(f"CPU time in {minutes:.0f} idle minutes", f"{cpu:.3f} s", "", "-", "cgroup", "0.00 s/min", cpu / minutes < _CPU_LIMIT),
        Row(
            f"wake-ups in {minutes:.0f} idle minutes", str(waking), f"watchdog {allowed}", "-", "count", "the watchdog's",
            waking <= allowed,
        ),
    ]  # fmt: skip


def _watchdog(found: str) -> float:
    """Seconds between its signs of life, 0 where none are wanted."""
    units = {"min": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+)(min|s|ms)", found)
    return sum(int(value) * units[unit] for value, unit in parts) / 2
