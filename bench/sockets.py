# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading /proc/net/tcpstat against /proc/net/tcp, in one virtual machine, in turns; and what a socket costs among many.

The fastest of the rounds counts: what else runs on the machine only ever adds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.rehearsal.vm import Ending, Module
from tests import kernels
from tests.vm import zoo

from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

_MANY, _MORE = 20_000, 100_000
# Not slower than the kernel's own file (0.8 is the goal).
_LIMIT, _GOAL = 1.0, 0.8
# A socket among more costs the same, or what it costs the kernel's own file too, where memory is what gets slower.
_FLAT, _NOISE = 1.5, 1.1


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `sockets`."""
    kernel = kernels.fetch(next(series for series, home in kernels.HOME.items() if home == suite))
    with tempfile.TemporaryDirectory() as directory:
        built = kernels.make(kernel, zoo.SOURCE / "module", Path(directory, "module"), [])
        assert built.returncode == 0, built.log
        module = Module("knetstat", (built.directory / "knetstat.ko").read_bytes())
        program = zoo.compiled(Path(directory))
    rows = []
    each: dict[int, tuple[float, float]] = {}
    for count in (_MANY, _MORE):
        outcome = zoo.run(
            kernel.vmlinuz, [module], program, "bench", f"{count}", f"{max(rounds, 15)}", memory=2048, timeout=1800
        )  # fmt: skip
        assert outcome.ending is Ending.LOADED, (outcome.output[-500:], outcome.words[-20:])
        lines = outcome.output.splitlines()
        ours, theirs = each[count] = fastest(lines, "/proc/net/tcpstat"), fastest(lines, "/proc/net/tcp")
        rows.append(
            Row(
                f"read tcpstat, {count:,} sockets", seconds(ours), f"`/proc/net/tcp` {seconds(theirs)}", ratio(ours, theirs),
                "wall", f"{_LIMIT:g} (goal {_GOAL:g})", ours <= theirs * _LIMIT,
            )
        )  # fmt: skip
    dearer, dearer_there = (each[_MORE][i] / each[_MANY][i] * _MANY / _MORE for i in (0, 1))
    limit = max(_FLAT, dearer_there * _NOISE)
    what = f"one socket of {_MORE:,} against one of {_MANY:,}"
    beside = f"`/proc/net/tcp` {dearer_there:.2f} times"
    rows.append(
        Row(what, f"{dearer:.2f} times", beside, ratio(dearer, dearer_there), "wall", f"{limit:.2f} times", dearer <= limit)
    )
    return rows


def fastest(lines: Iterable[str], path: str) -> float:
    """Of the lines `PATH SECONDS`, the least for a path."""
    return min(float(taken) for name, taken in map(str.split, lines) if name == path)
