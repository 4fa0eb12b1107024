# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon remembers from look to look: which packages are guarded, and which kernels had them (see state/guarded).

Rule: an upgrade takes a package out of DKMS and puts it back. Nothing is remembered while somebody is at work on packages.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from knetstatd.state import guarded
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from knetstatd.core.model import Observation, Step
    from knetstatd.daemon.announce import Teller
    from knetstatd.verdict.observe import Machine


def remember(machine: Machine, teller: Teller) -> dict[str, list[str]] | None:
    """Keeps which packages are guarded, and says which have left dkms's tree.

    Returns what is owed to kernels that are not guarded; None if somebody is at work on packages: it is to be asked again,
    for no event tells of the end.
    """
    packages, before = machine.guarded(), guarded.load(machine.places)
    if packages is None:
        return None
    if packages != before:
        teller.gone(machine, before, packages)
        with contextlib.suppress(OSError):
            guarded.save(machine.places, packages)
    wanted = machine.wanted()
    return {kernel: names for kernel, names in guarded.owed(machine.places).items() if kernel not in wanted}


def steps(
    machine: Machine, teller: Teller, kernel: str, packages: Sequence[str], changed: float, now: float
) -> Iterator[tuple[Observation, Step]]:
    """What is seen on such a kernel, and the next steps, which are told. changed, now: as for a guarded one."""
    if packages:
        machine.refresh_locks()
        for seen in machine.observe_all(kernel, packages, changed)[1]:
            step = machine.plan(seen, now)
            teller.verdict(judge.verdict(machine, seen, step), seen, step)
            yield seen.observation, step
