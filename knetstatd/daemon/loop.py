# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: one loop that looks, asks `plan`, and starts at most one builder at a time.

Every source of events does one thing: it marks kernels as due. What happened is never concluded from an event, only from
the next look; a daemon that missed every event still converges, by its resync timer.
"""

from __future__ import annotations

import contextlib
import functools
import math
import selectors
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core import config, planner
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.events import Event
from knetstatd.core.model import Action, Loaded, Why
from knetstatd.daemon import announce, owed
from knetstatd.daemon.inotify import Mounts, Watch
from knetstatd.daemon.sd_notify import Notify
from knetstatd.daemon.signals import Signals, Stopped
from knetstatd.daemon.step import KINDS
from knetstatd.daemon.uevents import Uevents
from knetstatd.daemon.worker import Worker
from knetstatd.state import attempts, leftovers, load_history
from knetstatd.system import child, files, process
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine
from knetstatd.verdict.survey import BUILDERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from knetstatd.core.model import Observation, Step
    from knetstatd.system.journal import Journal

# Seconds: an event storm must not put the look off for ever.
_LONGEST_QUIET = 60.0


class Daemon:
    """The state of the loop; nothing in it outlives the process, nothing of it is needed again after a crash."""

    def __init__(
        self,
        root: Path,
        settings: config.Config,
        journal: Journal,
        *,
        clock: Callable[[], float] = attempts.now,
        builder: Sequence[str] | None = None,
    ) -> None:
        """clock: of all waits, seconds of CLOCK_BOOTTIME.  builder: see Worker."""
        self.root = root
        self.journal = journal
        self.now = clock
        self.notify = Notify()
        self.machine = Machine(root, settings, functools.partial(child.in_child, tick=self._tick))
        self.teller = announce.Teller(journal)
        self.due: dict[str, float] = {}
        self.first_mark: dict[str, float] = {}
        self.changed: dict[str, float] = {}
        self.known: set[str] = set()
        self.transaction = ""
        self.worker = Worker(self.machine, journal, self.notify, clock=clock, builder=builder)
        self.steps: dict[tuple[str, str], judge.Verdict] = {}
        self.selector = selectors.DefaultSelector()
        self.signals: Signals | None = None
        self.resync_at = self.alive_at = 0.0
        self.watch: Watch | None = None
        self._opened = contextlib.ExitStack()
        self.owed: dict[str, list[str]] | None = None  # kernels that are not guarded, and what they are to have again
        self.moved = False  # a directory may have come or gone below a kernel's
        self.winners: set[tuple[str, Path]] = set()  # where the verdicts' modules lie
        self.asked: set[tuple[str, str]] = set()  # why a builder was asked

    # -- sources ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Opens every source of events. One that cannot be had is told once, and the resync timer stands in for it."""
        self.signals = self._opened.enter_context(contextlib.closing(Signals()))
        self._opened.callback(self.selector.close)
        self.selector.register(self.signals, selectors.EVENT_READ, lambda: self._reload() if self.signals.read() else None)
        try:
            self.watch = self._opened.enter_context(contextlib.closing(Watch()))
            self.selector.register(self.watch, selectors.EVENT_READ, self._moved)
        except OSError as e:
            self._degraded("inotify", e)
        own = (("uevents", Uevents, self._modules), ("mounts", Mounts, self._mounted))
        for name, make, react in own if self.root == files.HERE else ():  # they say nothing of the system under another root
            try:
                source = self._opened.enter_context(contextlib.closing(make()))
                self.selector.register(source, selectors.EVENT_READ, lambda s=source, r=react: r(s))
            except OSError as e:
                self._degraded(name, e)

    def _degraded(self, what: str, error: OSError) -> None:
        again = f"looking again every {self.machine.config.resync_seconds:g} s instead"
        self.journal.log(Event.DEGRADED, f"{what} cannot be used ({error.strerror}); {again}", source=what)

    def _tick(self) -> None:
        """While a child reads files, which may take minutes: the service manager is answered, and a stop ends it."""
        if self.signals is not None and self.signals.stopping:
            raise Stopped
        self.teller.at_work(self.notify)
        self._alive(self.now())

    def _reload(self) -> None:
        self.notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self.machine.config = config.load(self.root)
            self.teller.rejected = ""
            self.journal.log(Event.CONFIG_LOADED, "the configuration was read again")
        except KnetstatdError as e:
            self.teller.reject(e)
        self.mark_all(0)
        self.notify("READY=1")

    def _moved(self) -> None:
        assert self.watch is not None
        changes = self.watch.read()
        if changes.lost:
            self.journal.log(Event.EVENTS_LOST, "the kernel's queue of file events overflowed; looking at everything")
            self.mark_all(self.machine.config.settle_seconds, touched=True)
        for label in changes.labels - ({"state", BUILDERS} if self.worker.kernel else set()):  # our builder's end tells
            if label.startswith("kernel:"):
                self.moved = True
                self.mark(label.removeprefix("kernel:"), touched=True)
            elif label == BUILDERS:
                # A lock is free a moment after it was closed (__fput()).
                if self.machine.places.build_lock.name in changes.entries.get(label, ()):
                    self.mark_all(planner.POLL)
            elif label == "source":  # a source that is being edited, or unpacked, is not compiled before it is quiet
                for kernel in {"", *self.known}:
                    self.mark(kernel, touched=True)
            else:
                # A change in /lib/modules itself concerns the kernels that it names, and the set of kernels.
                self.mark_all(self.machine.config.settle_seconds)
                for name in changes.entries.get(label, ()) if label == "modules" else ():
                    self.mark(name, touched=True)

    def _modules(self, source: Uevents) -> None:
        moved = source.read()
        if moved is None or (moved and moved & self.machine.module_names()):
            self.mark(self.machine.running)

    def _mounted(self, source: Mounts) -> None:
        source.read()
        self.mark_all(self.machine.config.settle_seconds)

    # -- marks --------------------------------------------------------------------------------------------------------

    def mark(self, kernel: str, *, touched: bool = False) -> None:
        """Something about `kernel` may have changed: look at it when it has been quiet for the settle time."""
        at = self.now()
        if touched:
            self.changed[kernel] = at
        first = self.first_mark.setdefault(kernel, at)
        self.due[kernel] = min(at + self.machine.config.settle_seconds, first + _LONGEST_QUIET)

    def mark_all(self, delay: float, *, touched: bool = False) -> None:
        """Anything may have changed: look at every kernel, and at which kernels there are, after `delay` seconds."""
        at = self.now()
        for kernel in self.known | {""}:
            if touched:
                self.changed[kernel] = at
            self.due[kernel] = min(self.due.get(kernel, at + delay), at + delay)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def loop(self) -> None:
        """Runs until a signal ends it."""
        self.mark_all(0)
        with contextlib.suppress(Stopped):
            while self.signals is None or not self.signals.stopping:
                self.turn()

    def turn(self, longest: float = math.inf) -> None:
        """One turn of the loop: looks at one kernel if one is due; then takes what the sources have.

        It waits for them until the next kernel is due, at most for `longest` seconds.
        """
        at = self.now()
        if at >= self.resync_at:
            self.resync_at = at + self.machine.config.resync_seconds
            self.mark_all(0)
        self._alive(at)
        # One kernel, then back to the sources: a look at many kernels never starves the watchdog.
        ready = min((kernel for kernel, when in self.due.items() if when <= at), key=self._priority, default=None)
        if ready is not None:
            self._look(ready)
        for key, _ in self.selector.select(min(longest, self.timeout())):
            key.data()

    def timeout(self) -> float:
        """For how many seconds there is nothing to do unless a source speaks."""
        alive = [] if self.notify.watchdog is None else [self.alive_at + self.notify.watchdog]
        return max(0.0, min(*self.due.values(), self.resync_at, *alive, math.inf) - self.now())

    def _alive(self, at: float) -> None:
        if self.notify.watchdog is not None and at >= self.alive_at + self.notify.watchdog:
            self.notify("WATCHDOG=1")
            self.alive_at = at

    def _priority(self, kernel: str) -> tuple[int, str]:
        # The running one first: loading a module takes a second, and its users are waiting.
        order = ("", self.machine.running, self.machine.next)
        return (order.index(kernel) if kernel in order else len(order), kernel)

    def _look(self, kernel: str) -> None:
        self.due.pop(kernel, None)
        self.first_mark.pop(kernel, None)
        if kernel == "":
            self._survey()
            return
        if kernel not in self.machine.wanted():
            self._forget(kernel)
            packages = (self.owed or {}).get(kernel, ()) if not self.worker.kernel else ()
            for what in owed.steps(self.machine, self.teller, kernel, packages, self.changed.get(kernel, 0.0), self.now()):
                self._act(*what)
            return
        was, self.transaction = self.transaction, self.machine.refresh_locks()
        if was and not self.transaction:  # it may have brought packages that are new to DKMS: those are looked at first
            self.due.update({"": 0.0, kernel: 0.0})
            return
        if self.moved:  # before the look: it sees what comes before the watch, the watch what comes after
            self._watch()
        look, observed = self.machine.observe_all(kernel, self.machine.packages(), self.changed.get(kernel, 0.0))
        for seen in observed:
            package = seen.observation.package
            step = self.machine.plan(seen, self.now())
            verdict = judge.verdict(self.machine, seen, step)
            self.teller.verdict(verdict, seen, step)
            self.steps[kernel, package] = verdict
            if seen.observation.loaded in (Loaded.CURRENT, Loaded.OUTDATED, Loaded.FAULTY):
                load_history.seen(self.machine.places, package, self.now())
            self._act(seen.observation, step)
            if step.action is Action.DONE:
                if mark := self.machine.sources.unkept(kernel, self.machine.package(package)):
                    self._ask(kernel, {(f"{package} for {kernel}", mark)})
                self._tidy(kernel, self.machine.places.stage(kernel, package), self.machine.places.attempt(kernel, package))
        self._ask(kernel, {(kernel, look.closed)} if look.closed else set())  # root keeps what the next look needs
        if self._winners() != self.winners:
            self._watch()
        self._publish_status()
        process.give_back_memory()

    def _act(self, seen: Observation, step: Step) -> None:
        """Does what a step asks for, or looks again when it says so."""
        if step.action in KINDS:
            self._start(seen.kernel, KINDS[step.action], seen)
        until = self.now() + planner.POLL if step.why is Why.OWN_RUN and not self._hears_builders() else step.until
        if until is not None:
            self.due[seen.kernel] = min(self.due.get(seen.kernel, until), until)

    def _watch(self) -> set[str]:
        """Makes the watches be those of the machine as it is; returns what is newly watched."""
        self.moved, self.winners = False, self._winners()
        if self.watch is None:
            return set()
        fresh = self.watch.refresh([*self.machine.watched(), *self.winners])
        self.teller.unwatched(self.watch.failed)
        return fresh

    def _hears_builders(self) -> bool:
        """Whether the end of a builder, also of one that is not ours, sends an event from now on, and has sent none yet."""
        return self.watch is not None and BUILDERS not in {*self._watch(), *self.watch.failed}

    def _winners(self) -> set[tuple[str, Path]]:
        """Where the modules lie that modprobe takes, with the labels of their kernels: it may be any directory of the tree."""
        return {(f"kernel:{k}", Path(file).parent) for (k, _), v in self.steps.items() for file, _ in v.checks if ".ko" in file}

    def _tidy(self, kernel: str, *left: Path) -> None:
        """Has a builder remove what is not needed any more, as after one that was killed."""
        self._ask(kernel, {(str(path), str(seen)) for path in left if (seen := files.identity(path)) is not None})

    def _ask(self, kernel: str, why: set[tuple[str, str]]) -> None:
        """Starts a builder, which is root, for a reason that is new: what it could not do is not asked for again."""
        if why - self.asked and kernel and not self.worker.kernel:
            self.asked |= why
            self._start(kernel, "build")

    def _survey(self) -> None:
        """Looks at which kernels there are, which will be booted, and which directories are watched."""
        machine = self.machine
        transaction = machine.refresh()
        there = set(machine.kernels.kernels)
        self.teller.survey(machine)
        for kernel in self.known - there:
            self._forget(kernel)
        self.changed = {kernel: when for kernel, when in self.changed.items() if kernel in there}
        if not transaction:  # an upgrade takes a package out of DKMS and puts it back
            self._tidy(machine.next, *leftovers.find(machine.places, there, machine.registered()))
        self.known = there
        self.owed = owed.remember(machine, self.teller)
        if self.owed is None:  # somebody is at work on one of them
            self.due[""] = self.now() + machine.config.settle_seconds
        self._watch()
        for kernel in machine.wanted() | set(self.owed or ()):
            self.due.setdefault(kernel, 0.0)
        for kernel in {k for k, _ in self.steps} - machine.wanted():
            self._forget(kernel)
        for key in [key for key in self.steps if key[1] not in machine.packages()]:  # a package that is gone
            del self.steps[key]
        self._publish_status()

    def _forget(self, kernel: str) -> None:
        self.steps = {key: verdict for key, verdict in self.steps.items() if key[0] != kernel}

    # -- the builder --------------------------------------------------------------------------------------------------

    def _start(self, kernel: str, kind: str, seen: Observation | None = None) -> None:
        """Starts a builder for a kernel, unless one runs; then this kernel is looked at again when that one ends."""
        if kind == "build" and kernel != self.machine.next and self.due.get(self.machine.next, math.inf) <= self.now():
            self._look(self.machine.next)  # what it needs is built first
        if self.worker.kernel:
            return
        if self.now() >= self.worker.not_before(seen) and self.worker.start(kernel, kind, seen):
            self.selector.register(self.worker, selectors.EVENT_READ, self._ended)
        else:
            self.due[kernel] = min(self.due.get(kernel, math.inf), max(self.now(), self.worker.not_before(seen)))

    def _ended(self) -> None:
        kernel = self.worker.kernel
        self.selector.unregister(self.worker)
        self.worker.ended()
        # "" first: DKMS may have registered something, and the kernel may have been removed meanwhile.
        self.due.update({kernel: 0.0, "": 0.0})
        for other in self.machine.wanted():  # those that wanted a builder while this one ran
            self.due.setdefault(other, 0.0)

    # -- telling ------------------------------------------------------------------------------------------------------

    def _publish_status(self) -> None:
        if any((k, p) not in self.steps for k in self.machine.wanted() for p in self.machine.packages()):
            return  # no verdict before the first full look
        self.teller.status(self.machine, [self.steps[key] for key in sorted(self.steps)], self.notify)

    def close(self) -> None:
        """Ends. A builder that runs goes on by itself; the next daemon sees it by its lock."""
        self.notify("STOPPING=1")
        self.journal.log(Event.STOPPING, "knetstatd ends")
        announce.withdraw(self.machine.places)
        self._opened.close()
        self.notify.close()
