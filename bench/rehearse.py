# SPDX-License-Identifier: GPL-2.0-or-later
"""The rehearsal of knetstat on a cloud kernel, against that kernel's bare boot to power-off with an empty initramfs.

Ours is all of it: reading and hashing the files, the initramfs, the machine, the insertion, the probe, the answer. The peer is
the same machine, whose init does nothing but end it. Both by emulation, on this machine and not in a container.
"""

from __future__ import annotations

import os
import stat
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core.model import Outcome
from knetstatd.rehearsal import rehearse, vm
from knetstatd.state import rehearsal_results
from tests import kernels

from .table import Row, ratio, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT = 1.3
_TIMEOUT = 300.0
_SERIES = "6.1"
_INIT = b"#!/bin/busybox sh\n/bin/busybox reboot -f\n"


def run(suite: str, rounds: int) -> list[Row]:
    """The rows of `rehearse`. suite: of no meaning here."""
    kernel = kernels.fetch(_SERIES)
    with tempfile.TemporaryDirectory() as directory:
        built = kernels.make(kernel, Path(__file__).parents[1] / "module", Path(directory, "module"), [])
        assert built.returncode == 0, built.log
        subject = rehearsal_results.Subject(
            kernel.release, "knetstat", kernel.vmlinuz, ((built.directory / "knetstat.ko", ()),)
        )
        initrd = Path(directory, "initrd")
        executable = stat.S_IFREG | 0o755
        entries = [
            *(vm.CpioFile(path, stat.S_IFDIR | 0o755) for path in ("bin", "dev")),
            vm.CpioFile("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
            vm.CpioFile("bin/busybox", executable, vm.static_busybox(Path("/"))),
            vm.CpioFile("init", executable, _INIT),
        ]
        initrd.write_bytes(vm.cpio(entries))

        def bare() -> None:
            done = vm.boot(vm.command(kernel.vmlinuz, initrd, kvm=False), _TIMEOUT)
            assert done.code == 0, done.text
            assert not done.timed_out, done.text

        def ours() -> None:
            answer = rehearse.carry_out(Path("/"), subject, rehearse.inputs(subject), _TIMEOUT)
            assert (answer.outcome, answer.machine) == (Outcome.LOADED, "emulation"), answer

        samples = [(_sample(ours), _sample(bare)) for _ in range(rounds + 1)][1:]
    our_wall, our_cpu = (statistics.median(own[i] for own, _ in samples) for i in (0, 1))
    wall, cpu = (statistics.median(other[i] for _, other in samples) for i in (0, 1))
    what, peer = f"rehearsal on a {_SERIES} cloud kernel, no KVM", "bare boot to power-off"
    met = our_cpu <= _LIMIT * cpu
    return [
        Row(what, seconds(our_cpu), f"{peer} {seconds(cpu)}", ratio(our_cpu, cpu), "cpu", f"{_LIMIT}", met),
        Row("  the same", seconds(our_wall), f"{peer} {seconds(wall)}", ratio(our_wall, wall), "wall", short=False),
    ]


def _sample(act: Callable[[], None]) -> tuple[float, float]:
    """Wall time, and CPU time of this process and its children."""
    before, begin = os.times(), time.monotonic()
    act()
    after = os.times()
    return time.monotonic() - begin, sum(after[:4]) - sum(before[:4])
