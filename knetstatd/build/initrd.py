# SPDX-License-Identifier: GPL-2.0-or-later
"""Making a kernel's initrd anew, if the configuration says so: the distribution's own programs do it.

Their hooks may do anything and write anywhere, so under systemd they run in a unit of their own: what publishes may not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.core.errors import BuildError
from knetstatd.core.model import Kind, Result
from knetstatd.diagnosis import build_log
from knetstatd.machine import initramfs
from knetstatd.system import process, units
from knetstatd.verify import initrd_check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from knetstatd.core.model import Check, Proof

TEMPLATE = "initrd"


def wrong(proofs: Iterable[Proof]) -> Check | None:
    """What stands against the initrd that the modules would boot with; None for nothing."""
    checks = (check for proof in proofs for check in proof.checks if check.name == initrd_check.NAME)
    return next((check for check in checks if check.result in (Result.FAIL, Result.UNKNOWN)), None)


def make(root: Path, kernel: str, timeout: float, inherit: Sequence[int], tick: Callable[[], None] | None = None) -> None:
    """Has it made; raises BuildError, or KnetstatdError if the unit cannot be started. timeout, inherit: see make_here."""
    if not units.available(root, TEMPLATE):
        return make_here(root, kernel, timeout, inherit, tick)
    unit = units.instance(TEMPLATE, kernel)
    commands = initramfs.commands(root, kernel)
    result = units.complete(root, unit, timeout * len(commands) + 60, tick)
    if result != "success":
        fix = "; ".join(" ".join(argv) for argv in commands)
        raise BuildError(Kind.INITRD, f"{unit} ended with {result or 'no result'}", unit, f"Run: {fix}")
    return None


def make_here(root: Path, kernel: str, timeout: float, inherit: Sequence[int], tick: Callable[[], None] | None = None) -> None:
    """Makes it; raises BuildError. timeout: seconds for each program.  inherit: our lock."""
    # Its work has some hundred megabytes: not in /tmp, which may be memory.
    env = process.environment(root / "var/tmp", root=root)
    for argv in initramfs.commands(root, kernel):
        done = process.run(argv, timeout=timeout, env=env, keep=inherit, tick=tick)
        if done.timed_out or done.code:
            how = f"did not end within {timeout:g} s" if done.timed_out else f"ended with {done.code}"
            evidence = build_log.last_lines(done.text, 4)
            raise BuildError(Kind.INITRD, f"{argv[0]} {how}", "", f"Run: {' '.join(argv)}", evidence)
