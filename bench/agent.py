# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside a container, alone, with nothing but the standard library: times commands, one beside the other.

Standard input is JSON: {"rounds": N, "warmup": N, "sides": {NAME: {"before": [ARGV, ...], "argv": ARGV}}}.
Standard output is JSON: {NAME: [[wall, cpu, stdout], ...]}, seconds; the warm-up rounds are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any


def once(argv: list[str]) -> tuple[float, float, str]:
    """Wall time, CPU time of the command and of everything that it waited for, and what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        said = out.read().decode(errors="replace")
        if process.returncode:
            sys.exit(
                f"{' '.join(argv)}: exit {process.returncode}\n{said[-2000:]}\n{err.read().decode(errors='replace')[-2000:]}"
            )
    return wall, usage.ru_utime + usage.ru_stime, said


def main() -> None:
    """Reads the order, carries it out, prints the samples."""
    order: dict[str, Any] = json.load(sys.stdin)
    samples: dict[str, list[tuple[float, float, str]]] = {name: [] for name in order["sides"]}
    for number in range(order["warmup"] + order["rounds"]):
        for name, side in order["sides"].items():
            for argv in side["before"]:
                once(argv)
            sample = once(side["argv"])
            if number >= order["warmup"]:
                samples[name].append(sample)
    json.dump(samples, sys.stdout)


main()
