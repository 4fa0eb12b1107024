# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's one hand: starts a builder, knows when it ends, and rests when one could not even begin.

Where systemd started us a builder is a unit, with the privileges that its kind of step needs and no others: it outlives the
daemon, and the machine's shutdown waits for it. Elsewhere (a container without systemd, a foreground run) it is our child.
Either way it is the same program, and what it did is read from the files.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from knetstatd.core import planner
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.events import Event
from knetstatd.core.exits import Exit
from knetstatd.core.model import Action
from knetstatd.state.attempts import now
from knetstatd.system import locks, process, units

if TYPE_CHECKING:
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
# What the builder gets from our environment: where to log, and where things lie.
_PASSED_ON = ("JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
# How a builder ends that has done what it could, or found another run at work; 124: timeout(1) let go of the shutdown.
_ORDERLY = (Exit.OK, Exit.IN_PROGRESS, 124)
# Where logind keeps its seats: without logind nobody can be asked to delay a shutdown.
_LOGIND = "/run/systemd/seats"


class Worker:
    """kernel: for which a builder runs, "" for none.  rest_until: no builder is started before (seconds of CLOCK_BOOTTIME)."""

    def __init__(self, machine: Machine, journal: Journal, notify: Notify) -> None:
        self._machine = machine
        self._journal = journal
        self._managed = notify.managed
        self._process: process.Process | None = None
        self._fd = -1
        self._disorderly = 0
        # The last builder could not begin, and logind was to be asked first: it may be that which cannot be done.
        self._inhibited = self._no_logind = False
        self.kernel = ""
        self.rest_until = 0.0

    def fileno(self) -> int:
        """For the selector: readable when the builder has ended."""
        return self._fd

    def start(self, kernel: str, kind: str) -> bool:
        """Starts a builder of that kind for a kernel; False where it cannot be done now, which is then said."""
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        try:
            self._process = process.start(self._argv(kernel, kind), env=process.environment(more=passed))
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
        """A builder could neither do its work nor remember that: say so, and from the second time on wait a while."""
        text = f"the builder for {kernel} could not do its work: {why}"
        self._journal.log(Event.DEGRADED, text, kernel=kernel, source="builder")
        if self._disorderly:
            self.rest_until = now() + planner.backoff(self._disorderly, self._machine.limits)
        self._disorderly += 1

    def _argv(self, kernel: str, kind: str) -> list[str]:
        if not self._managed:
            return [*process.self_argv(), "build", f"--step={kind}", "--", kernel]
        argv = ["systemctl", "start", "--", units.instance(kind, kernel)]
        mode, longest = self._machine.config.inhibit, self._machine.config.inhibit_longest_seconds
        self._inhibited = (
            mode != "off" and kernel == self._machine.next and not self._no_logind and os.path.isdir(_LOGIND)
        )
        if not self._inhibited:
            return argv
        why = f"--why=Building kernel modules for {kernel}, which the next boot starts"
        # When its time is over the lock is let go of, and the unit goes on without its starter.
        held = ["timeout", f"{longest:g}", "systemd-inhibit", "--what=shutdown", f"--mode={mode}", "--who=knetstatd", why]
        return [*held, *argv]
