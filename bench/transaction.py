# SPDX-License-Identifier: GPL-2.0-or-later
"""From the end of a package transaction to a module that is published and green.

The kernel and its headers are there, the module for it is not; a process holds dpkg's lock as apt does, the daemon compiles
meanwhile. depmod runs for the kernel, as the last thing that a kernel's installation does there, and the lock is let go.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from tests.container import product

from . import box
from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from tests.container.rig import Container

SETTLE = 3.0
_LIMIT = SETTLE + 1.0
# F_SETLK, as dpkg and apt take it; let go when the file says so. Prints when.
_HOLDER = """
import fcntl, os, subprocess, sys, time
with open("/var/lib/dpkg/lock-frontend", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("held", flush=True)
    while not os.path.exists("/run/bench-end"):
        time.sleep(0.02)
    subprocess.run(["depmod", sys.argv[1]], check=True)
print(time.time(), flush=True)
"""


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `transaction`."""
    with box.box(suite, boot=True) as c:
        old = c.kernels()[0].release
        c.add_fixture("good", autoinstall=False)
        box.install(c, ["kt-good"], settle_seconds=SETTLE, kernels="all")
        c.set_loaded("kt_good", None)
        c.set_running("0.0.0-none")
        c.start_product()
        took = [_once(c, old) for _ in range(min(rounds, 5))]
    ours = statistics.median(took)
    what = "end of a package transaction to published and green"
    return [
        Row(what, seconds(ours), f"settle time {seconds(SETTLE)}", ratio(ours, SETTLE), "wall", seconds(_LIMIT), ours <= _LIMIT)
    ]


def _once(c: Container, kernel: str) -> float:
    """Seconds from the lock's release to the daemon's word that the kernel is ready."""
    c.run(["rm", "-f", "/run/bench-end"], check=True)  # a file system of the machine's own, which c.path() does not reach
    holder = c.start([*box.PYTHON, "-c", _HOLDER, kernel])
    product.wait("the lock is held", lambda: "held" in holder.output())
    begin = time.time()
    c.run(["dkms", "unbuild", "kt-good/1.0", "-k", kernel])
    _since(c, kernel, "staged", begin)
    time.sleep(1)
    c.run(["touch", "/run/bench-end"], check=True)
    ended = float(holder.wait().stdout.split()[1])
    return _since(c, kernel, "ready", ended) - ended


def _since(c: Container, kernel: str, kind: str, begin: float) -> float:
    """When the daemon said so, after `begin`; waits for it."""

    def said() -> float:
        entries = [e for e in product.events(c, kernel=kernel) if e["KNETSTATD_EVENT"] == kind]
        times = [int(e["__REALTIME_TIMESTAMP"]) / 1e6 for e in entries]
        return next((when for when in times if when > begin), 0.0)

    return float(product.wait(f"the daemon says {kind}", said, 120))
