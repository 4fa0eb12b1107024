# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a container: looks at every kernel and every guarded module as the daemon does, and prints how long it took.

One argument, how often. The first look proves everything, the later ones find every proof still standing. Prints JSON:
{"looks": [[wall, cpu], ...], "verdicts": {REASON: how many}}.
"""

from __future__ import annotations

import collections
import json
import sys
import time
from pathlib import Path

from knetstatd.core import config
from knetstatd.state import attempts
from knetstatd.verdict.observe import Machine


def look(machine: Machine) -> collections.Counter[str]:
    """One look at the whole machine, as the daemon's survey and its look at each kernel."""
    machine.refresh()
    found: collections.Counter[str] = collections.Counter()
    for kernel in machine.wanted():
        machine.refresh_locks()
        seen = machine.observe_all(kernel, machine.packages())[1]
        found.update(machine.plan(one, attempts.now()).why for one in seen)
    return found


def main() -> None:
    """Looks, and prints."""
    root = Path("/")
    machine = Machine(root, config.load(root))
    times = []
    found: collections.Counter[str] = collections.Counter()
    for _ in range(int(sys.argv[1])):
        begin, cpu = time.monotonic(), time.process_time()
        found = look(machine)
        times.append((time.monotonic() - begin, time.process_time() - cpu))
    print(json.dumps({"looks": times, "verdicts": found}))


main()
