# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading /proc/net/tcpstat against /proc/net/tcp, in one virtual machine, in turns.

    python3 -m bench.bench_sockets [SERIES]

Prints a line per number of sockets; exit status 1 where reading 20,000 takes longer than /proc/net/tcp does, or where a socket
out of 100,000 costs more than 1.5 times what one of 20,000 does, and the kernel's own file does not get dearer with it.
The fastest of the rounds counts: what else runs on the machine only ever adds.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from knetstatd.rehearse import Module, Outcome, Plan, Program, rehearse
from tests import kernels

SOURCE = Path(__file__).parents[1]
LIMIT, GOAL, FLAT = 1.0, 0.8, 1.5
ROUNDS = 15


def measure(kernel: kernels.Kernel, module: Module, program: bytes, count: int) -> tuple[float, float]:
    """Seconds for /proc/net/tcp and for /proc/net/tcpstat."""
    told = rehearse(
        kernel.vmlinuz, Plan((module,), Program(program, ("bench", f"{count}", f"{ROUNDS}"))), memory=2048, timeout=900
    )
    if told.outcome is not Outcome.LOADED:
        sys.exit(f"{told.outcome.value}: {told.output[-500:]} {told.words[-20:]}")
    times: dict[str, list[float]] = {}
    for line in told.output.splitlines():
        path, taken = line.split()
        times.setdefault(path, []).append(float(taken))
    return min(times["/proc/net/tcp"]), min(times["/proc/net/tcpstat"])


def main(series: str = "6.1") -> int:
    kernel = kernels.fetch(series)
    with tempfile.TemporaryDirectory() as directory:
        built = kernels.make(kernel, SOURCE / "module", Path(directory, "module"), [])
        if built.returncode:
            sys.exit(built.log)
        program = Path(directory, "zoo")
        sources = sorted((SOURCE / "tests/vm").glob("zoo*.c"))
        subprocess.run(["gcc", "-std=gnu11", "-O2", "-static", "-pthread", "-o", program, *sources], check=True)
        module = Module("knetstat", (built.directory / "knetstat.ko").read_bytes())
        code = program.read_bytes()
    measured = {}
    for count in (1_000, 20_000, 100_000):
        theirs, ours = measured[count] = measure(kernel, module, code, count)
        print(
            f"{series} {count:>7} sockets: tcp {theirs * 1e3:8.1f} ms, tcpstat {ours * 1e3:8.1f} ms, "
            f"ratio {ours / theirs:.2f} (goal {GOAL}, limit {LIMIT}), {ours / count * 1e6:.2f} us a socket",
            flush=True,
        )
    (theirs, ours), (theirs_100k, ours_100k) = measured[20_000], measured[100_000]
    dearer = max(FLAT, theirs_100k / theirs / 5)
    return ours / theirs > LIMIT or ours_100k / ours / 5 > dearer


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
