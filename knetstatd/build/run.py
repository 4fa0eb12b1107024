# SPDX-License-Identifier: GPL-2.0-or-later
"""Step after step for a package and a kernel: what `knetstatctl build` does, by hand and started by the daemon alike.

Rules:

1. One run at a time on a machine, held by a lock that the programs of a publication inherit: killed or not, while one of
   them lives nobody else starts.
2. Before each step the machine is observed again, and the step is the planner's answer to that.
3. What was just published and is to be built again is not: something changes it, and would do so for ever.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from knetstatd.build.steps import Builder
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Action, Kind, Why
from knetstatd.state import attempts, guarded, leftovers, load_history, staged
from knetstatd.system import locks, process
from knetstatd.system.progress import Progress
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from knetstatd.core.model import Step
    from knetstatd.system.journal import Journal
    from knetstatd.verdict.observe import Machine, Seen

# Done by programs, or units, of their own: each with other privileges.
STEPS = {
    "build": (Action.STAGE, Action.PUBLISH, Action.MAKE_INITRD, Action.REHEARSE),
    "load": (Action.LOAD,),
    "headers": (Action.FETCH_HEADERS,),
}


def run_manual(
    machine: Machine, journal: Journal, progress: Progress, kernels: Sequence[str], packages: Sequence[str], *, wait: bool
) -> None:
    """All steps for these kernels and packages, whatever failed before. wait: for package managers and for other runs.

    Raises KnetstatdError if another run does not end.
    """
    process.adopt_orphans()
    every = tuple(action for actions in STEPS.values() for action in actions)
    with locks.locked(machine.places.build_lock, 3600.0 if wait else 0.0) as lock:
        builder = Builder(machine, journal, progress, lock)
        for kernel in kernels:
            for package in machine.in_order(kernel, packages):
                attempts.forget(machine.places, kernel, package)
                if kernel == machine.running:
                    load_history.forget(machine.places, package)
                run_steps(builder, kernel, package, every, wait=wait)


def step_by_step(machine: Machine, journal: Journal, kernel: str, packages: Sequence[str], kind: str) -> bool | None:
    """What the daemon starts: the steps of one kind that are due now, for one kernel.

    None if another run is at work, False if a failure could not be remembered.
    """
    process.adopt_orphans()
    try:
        lock = locks.hold(machine.places.build_lock)
    except KnetstatdError:
        return None
    builder = Builder(machine, journal, Progress(shown=False), lock)
    if kernel not in machine.wanted():  # a kernel that is not guarded gets what it had, and nothing that it had not
        packages = [package for package in packages if package in guarded.owed(machine.places).get(kernel, ())]
    with process.undisturbed():  # a service manager that stops everything waits for what has begun
        for package in machine.in_order(kernel, packages):
            run_steps(builder, kernel, package, STEPS[kind], wait=False)
            with contextlib.suppress(OSError):  # without it, the times of the source decide
                machine.sources.keep(kernel, machine.package(package))
    process.kill_orphans()
    os.close(lock)
    if not machine.refresh():  # an upgrade takes a package out of DKMS and puts it back
        leftovers.forget(machine.places, set(machine.kernels.kernels), machine.registered())
    return not builder.failures.forgetful


def run_steps(builder: Builder, kernel: str, package: str, steps: Collection[Action], *, wait: bool) -> None:
    """Step after step, until the next one is none of `steps`, or one fails."""
    published = ""
    while True:
        builder.machine.refresh()  # a package may have been taken out of DKMS since: publishing would bring it back
        seen = builder.machine.observe(builder.machine.look(kernel), package, own=True)
        step = builder.machine.plan(seen, attempts.now())
        if step.action in steps:
            if published and published == seen.fingerprint and step.action in (Action.STAGE, Action.PUBLISH):
                builder.failures.failed(seen, step.action, _changed(builder.machine, seen, step))
                return
            if not builder.step(seen, step.action):
                return
            published = seen.fingerprint if step.action is Action.PUBLISH else published
            continue
        if step.action is Action.DONE:  # what a builder left that was killed after its work was done
            staged.clear(builder.machine.places, kernel, package)
            attempts.forget(builder.machine.places, kernel, package)
        if step.action is not Action.WAIT or not wait or step.why in (Why.BACKOFF, Why.NOT_REHEARSED):
            return
        verdict = judge.verdict(builder.machine, seen, step)
        builder.progress.phase(f"{verdict.title}: {verdict.reason}")
        while (step.until or 0) > attempts.now():
            time.sleep(0.1)
            builder.progress.tick()


def _changed(machine: Machine, seen: Seen, step: Step) -> BuildError:
    """What was just published is to be built again, see rule 3."""
    verdict = judge.verdict(machine, seen, step)
    what = f"it was published and verified, and something has changed it since: {verdict.reason or verdict.state}"
    return BuildError(Kind.PUBLISH, what, fix=verdict.fix)
