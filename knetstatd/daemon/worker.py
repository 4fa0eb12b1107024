# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker: starts one builder at a time, knows when it ends, and rests when one could not do its work.

If systemd started us, root starts a builder for us (see step): a unit with the privileges that its kind of step needs and no
others. It outlives the daemon, and the machine's shutdown waits for it. Else (a container without systemd, a foreground run) it
is our child.
Either way it is the same program, and its outcome is read from the files.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import planner
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.events import Event
from knetstatd.core.exits import Exit
from knetstatd.daemon import step
from knetstatd.state import attempts
from knetstatd.system import locks, process

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from knetstatd.core.model import Observation
    from knetstatd.daemon.sd_notify import Notify
    from knetstatd.system.journal import Journal
    from knetstatd.verdict.observe import Machine

_PATIENCE = 5.0  # seconds for systemd to take a line
# The builder's part of our environment: where to log, and where state lies.
_PASSED_ON = ("JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY")
# How a builder ends that has done what it could, or found another run at work.
_ORDERLY = (Exit.OK, Exit.IN_PROGRESS)


class _Asked(NamedTuple):
    """Why a builder was started. times: how many were before for the same.  until: none is started again for it before."""

    seen: Observation
    times: int
    until: float


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
        door: Path | None = None,
    ) -> None:
        """builder: the program that builds if no service manager does it for us; this installation's own if it is None.

        door: the socket of knetstatd-step.socket; the machine's if it is None.
        """
        self._machine = machine
        self._journal = journal
        self._managed = notify.managed
        self._now = clock
        self._builder = builder
        self._door = door or machine.root / step.SOCKET
        self._job: _Child | _Request | None = None
        self._disorderly = 0
        self._asked: dict[tuple[str, str], _Asked] = {}
        self.kernel = ""
        self.rest_until = 0.0

    def fileno(self) -> int:
        """For the selector: readable when the builder has ended."""
        return self._job.fd if self._job is not None else -1

    def not_before(self, seen: Observation | None) -> float:
        """The earliest time to start a builder for an observation. One that changed nothing is not started again at once."""
        known = self._asked.get((seen.kernel, seen.package)) if seen is not None else None
        return max(self.rest_until, known.until if known is not None and known.seen == seen else 0.0)

    def start(self, kernel: str, kind: str, seen: Observation | None = None) -> bool:
        """Starts a builder of that kind for a kernel. False if it cannot be started now; the journal says why.

        seen: what it is to change. A pause follows the second one that has ended and left it as it was.
        """
        held = kernel == self._machine.next and self._machine.config.inhibit != "off"
        try:
            if self._managed:
                self._job = _Request(self._door, step.line(kernel, kind, held=held))
            else:
                self._job = _Child([*(self._builder or process.self_argv()), "build", f"--step={kind}", "--", kernel])
        except KnetstatdError as e:
            self._rest(kernel, str(e))
            return False
        self.kernel = kernel
        if seen is not None:
            self._ask(seen)
        return True

    def _ask(self, seen: Observation) -> None:
        key = seen.kernel, seen.package
        known = self._asked.get(key)
        times = known.times + 1 if known is not None and known.seen == seen else 0
        self._asked[key] = _Asked(seen, times, self._now() + planner.backoff(times, self._machine.limits) if times else 0.0)
        if times == 2 and not self._disorderly:
            text = (
                f"two builders for {seen.kernel} have ended, and {seen.package} is as it was; run: systemctl reload knetstatd"
            )
            self._journal.log(Event.DEGRADED, text, kernel=seen.kernel, package=seen.package, source="builder")

    def ended(self) -> None:
        """Takes the end of the builder; the caller has taken it out of its selector and looks at the kernel again."""
        assert self._job is not None
        code = self._job.status()
        kernel, self.kernel, self._job = self.kernel, "", None
        # A cancelled job (the machine goes down, systemd starts anew) leaves the unit at work: its lock tells.
        if code in _ORDERLY or locks.held(self._machine.places.build_lock):
            self._disorderly = 0
        else:
            how = "without an answer" if code is None else f"with signal {-code}" if code < 0 else f"with status {code}"
            self._rest(kernel, f"it ended {how}")

    def _rest(self, kernel: str, why: str) -> None:
        """A builder could neither do its work nor keep its failure: the journal says so. A pause follows the second one."""
        text = f"the builder for {kernel} could not do its work: {why}"
        self._journal.log(Event.DEGRADED, text, kernel=kernel, source="builder")
        if self._disorderly:
            self.rest_until = self._now() + planner.backoff(self._disorderly, self._machine.limits)
        self._disorderly += 1


class _Child:
    """A builder that is our child. fd: readable when it has ended. Raises KnetstatdError if it cannot be started."""

    def __init__(self, argv: Sequence[str]) -> None:
        passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = process.start(argv, env=process.environment(more=passed))
        self.fd = os.pidfd_open(self._process.pid)

    def status(self) -> int | None:
        """How it ended."""
        os.close(self.fd)
        return process.ended(self._process)


class _Request:
    """A builder that root starts for us. fd: readable when it has ended. Raises KnetstatdError if nobody can be asked."""

    def __init__(self, door: Path, line: bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(_PATIENCE)
            self._socket.connect(os.fspath(door))
            self._socket.sendall(line)
        except OSError as e:
            self._socket.close()
            fix = "Run: systemctl start knetstatd-step.socket"
            raise KnetstatdError(f"no step can be asked for: {e.strerror or e}", os.fspath(door), fix) from e
        self.fd = self._socket.fileno()

    def status(self) -> int | None:
        """The exit status of the unit's starter; None if there was no answer."""
        with self._socket:
            try:
                return int(self._socket.recv(16))
            except (OSError, ValueError):
                return None
