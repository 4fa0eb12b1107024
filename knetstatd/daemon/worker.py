# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker: starts one builder at a time, knows when it ends, and rests when one could not do its work.

If systemd started us, a builder is a unit with the privileges that its kind of step needs and no others: it outlives the
daemon, and the machine's shutdown waits for it. Else (a container without systemd, a foreground run) it is our child.
Either way it is the same program, and its outcome is read from the files.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core import planner
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.events import Event
from knetstatd.core.exits import Exit
from knetstatd.core.model import Action
from knetstatd.state import attempts
from knetstatd.system import locks, process, units

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knetstatd.daemon.sd_notify import Notify
    from knetstatd.system.journal import Journal
    from knetstatd.verdict.observe import Machine

# Which kind of builder takes a step: the word after `--step=`, and in the name of the unit.
KINDS = {
    Action.STAGE: "build",
    Action.PUBLISH: "build",
    Action.REHEARSE: "build",
    Action.LOAD: "load",
    Action.FETCH_HEADERS: "headers",
}
# The builder's part of our environment: where to log, and where state lies.
_PASSED_ON = ("JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
# How a builder ends that has done what it could, or found another run at work; 124: timeout(1) let go of the shutdown.
_ORDERLY = (Exit.OK, Exit.IN_PROGRESS, 124)
# Here logind keeps its seats: without logind nobody can be asked to delay a shutdown.
SEATS = Path("/run/systemd/seats")


class Worker:
    """kernel: the builder works for it, "" for none.  rest_until: no builder is started before (seconds of CLOCK_BOOTTIME)."""

    def __init__(
        self,
        machine: Machine,
        journal: Journal,
        notify: Notify,
        *,
        clock: Callable[[], float] = attempts.now,
        builder: Sequence[str] | None = None,
        seats: Path = SEATS,
    ) -> None:
        """builder: the program that builds if no service manager does it for us; this installation's own if it is None."""
        self._machine = machine
        self._journal = journal
        self._managed = notify.managed
        self._now = clock
        self._builder = builder
        self._seats = seats
        self._process: process.Process | None = None
        self._fd = -1
        self._disorderly = 0
        # If a builder fails that asked logind first, logind may be the reason: the next one does not ask.
        self._inhibited = self._no_logind = False
        self.kernel = ""
        self.rest_until = 0.0

    def fileno(self) -> int:
        """For the selector: readable when the builder has ended."""
        return self._fd

    def start(self, kernel: str, kind: str) -> bool:
        """Starts a builder of that kind for a kernel. False if it cannot be started now; the journal says why."""
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            self._process = process.start(self.argv(kernel, kind), env=process.environment(more=passed))
        except KnetstatdError as e:
            self._rest(kernel, str(e))
            return False
        self._fd = os.pidfd_open(self._process.pid)
        self.kernel = kernel
        return True

    def ended(self) -> None:
        """Takes the end of the builder; the caller has taken it out of its selector and looks at the kernel again."""
        assert self._process is not None
        os.close(self._fd)
        code = process.ended(self._process)
        kernel, self.kernel, self._process, self._fd = self.kernel, "", None, -1
        # A cancelled job (the machine goes down, systemd starts anew) leaves the unit at work: its lock tells.
        if code in _ORDERLY or locks.held(self._machine.places.build_lock):
            self._disorderly = 0
            self._no_logind = False
        else:
            self._no_logind = self._inhibited
            self._rest(kernel, f"it ended with {f'signal {-code}' if code < 0 else f'status {code}'}")

    def _rest(self, kernel: str, why: str) -> None:
        """A builder could neither do its work nor keep its failure: the journal says so. A pause follows the second one."""
        text = f"the builder for {kernel} could not do its work: {why}"
        self._journal.log(Event.DEGRADED, text, kernel=kernel, source="builder")
        if self._disorderly:
            self.rest_until = self._now() + planner.backoff(self._disorderly, self._machine.limits)
        self._disorderly += 1

    def argv(self, kernel: str, kind: str) -> list[str]:
        """The command line that starts a builder of that kind for a kernel."""
        if not self._managed:
            return [*(self._builder or process.self_argv()), "build", f"--step={kind}", "--", kernel]
        argv = ["systemctl", "start", "--", units.instance(kind, kernel)]
        mode, longest = self._machine.config.inhibit, self._machine.config.inhibit_longest_seconds
        self._inhibited = (
            mode != "off" and kernel == self._machine.next and not self._no_logind and self._seats.is_dir()
        )
        if not self._inhibited:
            return argv
        why = f"--why=Building kernel modules for {kernel}, which the next boot starts"
        # After that time timeout(1) ends the starter and its lock; the unit goes on.
        held = ["timeout", f"{longest:g}", "systemd-inhibit", "--what=shutdown", f"--mode={mode}", "--who=knetstatd", why]
        return [*held, *argv]
