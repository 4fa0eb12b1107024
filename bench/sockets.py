# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading /proc/net/tcpstat against /proc/net/tcp, in one virtual machine, in turns; and what a socket costs among many.

The fastest of the rounds counts: what else runs on the machine only ever adds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.rehearse import Module, Outcome
from tests import kernels
from tests.vm import zoo

from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

_MANY, _MORE = 20_000, 100_000
# Not slower than the kernel's own file (0.8 is the goal), and a socket among more costs the same but for the caches.
_LIMIT, _GOAL, _FLAT = 1.0, 0.8, 1.5


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `sockets`."""
    kernel = kernels.fetch(next(series for series, home in kernels.HOME.items() if home == suite))
    with tempfile.TemporaryDirectory() as directory:
        built = kernels.make(kernel, zoo.SOURCE / "module", Path(directory, "module"), [])
        assert built.returncode == 0, built.log
        module = Module("knetstat", (built.directory / "knetstat.ko").read_bytes())
        program = zoo.compiled(Path(directory))
    rows = []
    each = {}
    for count in (_MANY, _MORE):
        told = zoo.run(
            kernel.vmlinuz, [module], program, "bench", f"{count}", f"{max(rounds, 15)}", memory=2048, timeout=1800
        )  # fmt: skip
        assert told.outcome is Outcome.LOADED, (told.output[-500:], told.words[-20:])
        theirs, ours = (fastest(told.output.splitlines(), path) for path in ("/proc/net/tcp", "/proc/net/tcpstat"))
        each[count] = ours / count
        rows.append(
            Row(
                f"read tcpstat, {count:,} sockets", seconds(ours), f"`/proc/net/tcp` {seconds(theirs)}", ratio(ours, theirs),
                "wall", f"{_LIMIT:g}, goal {_GOAL:g}", ours / theirs <= _LIMIT,
            )
        )  # fmt: skip
    many, more = each[_MANY], each[_MORE]
    beside = f"of {_MANY:,}: {seconds(many)}"
    rows.append(
        Row(f"one socket of {_MORE:,}", seconds(more), beside, ratio(more, many), "wall", f"{_FLAT:g}", more / many <= _FLAT)
    )
    return rows


def fastest(lines: Iterable[str], path: str) -> float:
    """Of the lines `PATH SECONDS`, the least for a path."""
    return min(float(taken) for name, taken in map(str.split, lines) if name == path)
