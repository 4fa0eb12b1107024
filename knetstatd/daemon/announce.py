# SPDX-License-Identifier: GPL-2.0-or-later
"""What the daemon says: each change of a verdict once, in the journal; the current ones in /run/knetstatd/status.json, and,
where something is wrong, in /run/knetstatd/motd, which pam_motd(8) shows at each login.

Rule: what is in /run is true now. Both files go when the daemon does; its unit removes them if it was killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from knetstatd.core import names
from knetstatd.core.events import Event
from knetstatd.core.model import Action, Artefact, KernelState, Result, Why
from knetstatd.system import files, locks
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from knetstatd.core.errors import KnetstatdError
    from knetstatd.core.model import Answer, Attempt, Step
    from knetstatd.daemon.sd_notify import Notify
    from knetstatd.state.guarded import Guarded
    from knetstatd.state.paths import Places
    from knetstatd.system.journal import Journal
    from knetstatd.verdict.observe import Machine, Seen

_MORE_TIME = 60_000_000  # microseconds; asked for each second, so that a daemon that hangs is ended


class Teller:
    """Remembers what was said last, so that nothing is said twice."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._said: dict[tuple[str, str], tuple[object, ...]] = {}
        self._at_first: dict[tuple[str, str], tuple[Attempt | None, Answer | None]] = {}
        self._wrong: dict[tuple[str, str], str] = {}
        self._kernels: set[str] | None = None
        self._next = ""
        self._refused: set[str] = set()
        self._unwatched: dict[str, str] = {}
        self._status: dict[str, Any] = {}
        self._motd: str | None = None
        self._started = False
        # Why the last reload was refused: until another succeeds, an old configuration is in force.
        self.rejected = ""

    def reject(self, error: KnetstatdError) -> None:
        """Says that a new configuration is not taken, and keeps saying so in the status line and at logins."""
        self.rejected, *more = error.what.splitlines()
        text = f"the configuration is faulty; the old one stays in force: {self.rejected}"
        text += f" (and {len(more)} more faults)" if more else ""
        self.journal.log(Event.CONFIG_REJECTED, text, evidence=str(error))

    def survey(self, machine: Machine) -> None:
        """Says which kernels came and went, which is next, and which names are left alone."""
        for name, reason in machine.refused():
            if name not in self._refused:
                text = f"{names.show(name)} is left alone: {reason}"
                self.journal.log(Event.NAME_REFUSED, text, name=names.show(name), reason=reason)
        self._refused = {name for name, _ in machine.refused()}
        kernels = {k for k in machine.kernels.kernels if machine.state_of(k) is not KernelState.NOT_A_KERNEL}
        before = self._kernels or set()
        for kernel in sorted(kernels - before, key=names.version_key):
            role = judge.role(machine, kernel)
            self.journal.log(Event.KERNEL_SEEN, f"kernel {kernel}{f' ({role})' if role else ''} is installed", kernel=kernel)
        for kernel in sorted(before - kernels, key=names.version_key):
            self.journal.log(Event.KERNEL_REMOVED, f"kernel {kernel} was removed", kernel=kernel)
            self._said = {key: said for key, said in self._said.items() if key[0] != kernel}
            self._at_first = {key: one for key, one in self._at_first.items() if key[0] != kernel}
        self._kernels = kernels
        if machine.next and machine.next != self._next:
            text = f"the next boot starts {machine.next} ({machine.next_why})"
            self.journal.log(Event.NEXT_KERNEL, text, kernel=machine.next, reason=machine.next_why)
        self._next = machine.next

    def unwatched(self, failed: Mapping[str, str]) -> None:
        """Says which directories cannot be watched."""
        for label, reason in failed.items():
            if self._unwatched.get(label) != reason:
                text = f"changes cannot be seen at once: {names.clean(reason)}"
                self.journal.log(Event.DEGRADED, text, source=label)
        self._unwatched = dict(failed)

    def gone(self, machine: Machine, before: Mapping[str, Guarded], now: Mapping[str, Guarded]) -> None:
        """Says which guarded packages have left dkms's tree, and what follows."""
        for name, one in before.items():
            if not one.registered or (name in now and now[name].registered) or not {name, "*"} & set(machine.config.modules):
                continue
            _, reason, fix = machine.missing.explain(name)
            if name in now:
                text = f"{name} {one.version} left DKMS's tree, and no kernel gets it any more: {reason}"
            else:
                text, reason, fix = f"{name} {one.version} was removed, with its source", "it was removed", ""
            self.journal.log(Event.PACKAGE_GONE, text, package=name, version=one.version, kernel="", reason=reason, fix=fix)

    def verdict(self, verdict: judge.Verdict, seen: Seen, step: Step) -> None:
        """Says a verdict if it differs from the last one said for this module and kernel."""
        key = (verdict.kernel, verdict.package)
        self._at_first.setdefault(key, (seen.observation.attempt, seen.answer))
        self._wrong_module(verdict, seen)
        attempt = seen.observation.attempt if step.why in (Why.FAILED, Why.BACKOFF) else None
        answer = seen.answer if step.why is Why.REHEARSAL else None
        said = (step.action, step.why, verdict.reason if step.action is not Action.WAIT else "")
        if step.why in (Why.OWN_RUN, Why.SETTLING):
            return
        if self._said.get(key) == said:
            return
        self._said[key] = said
        # The builder tells of each failure; here only those are told that this daemon has found at its first look.
        at_first = self._at_first[key]
        if verdict.event is None or any(one is not None and one not in at_first for one in (attempt, answer)):
            return
        text = f"{verdict.title}: {verdict.state}"
        if verdict.event is Event.READY:
            text += f" ({verdict.proof})"
        elif verdict.reason:
            text += f": {verdict.reason}"
        self.journal.log(
            verdict.event, text, package=verdict.package, version=verdict.version, kernel=verdict.kernel, state=verdict.state,
            why=verdict.why, reason=verdict.reason, fix=verdict.fix, proof=verdict.proof,
            kind=attempt.kind if attempt else "", log=verdict.log,
            evidence="\n".join(attempt.evidence if attempt else answer.words if answer else ()),
        )  # fmt: skip

    def _wrong_module(self, verdict: judge.Verdict, seen: Seen) -> None:
        """Says that a wrong module is installed, once for each wrong file."""
        key = (verdict.kernel, verdict.package)
        if seen.observation.transaction or seen.observation.foreign_dkms or seen.observation.own_run:
            return  # somebody is about to put something better there
        wrong = ""
        if seen.observation.installed in (Artefact.BAD, Artefact.OTHER):
            wrong = "; ".join(
                ": ".join(filter(None, (p.path, p.worst.found, p.worst.reason)))
                for _, p in seen.installed
                if p.path and p.worst is not None
            )
        if wrong and self._wrong.get(key) != wrong:
            elsewhere = any(c.name == "release" and c.result is Result.WARN for _, p in seen.installed for c in p.checks)
            other = "was built for another kernel" if elsewhere else "is not what DKMS has registered"
            bad = seen.observation.installed is Artefact.BAD
            takes = any(p.fails for _, p in seen.installed) and not any(p.is_refused for _, p in seen.installed)
            consequence = ("is not the right one" if takes else "will not load") if bad else other
            self.journal.log(
                Event.WRONG_MODULE, f"{verdict.title}: the installed module {consequence}: {wrong}",
                package=verdict.package, version=verdict.version, kernel=verdict.kernel, reason=wrong,
            )  # fmt: skip
        self._wrong[key] = wrong

    def at_work(self, notify: Notify) -> None:
        """Asks the service manager for more time, if it waits for READY: a large module may take minutes."""
        if not self._started:
            notify(f"EXTEND_TIMEOUT_USEC={_MORE_TIME}")

    def status(self, machine: Machine, verdicts: Sequence[judge.Verdict], notify: Notify) -> None:
        """Publishes all verdicts: the status file, the service manager's line; READY the first time."""
        document, text = judge.document(machine, verdicts), motd(verdicts, self.rejected, next_unknown(machine))
        try:
            if document != self._status:
                files.write_json(machine.places.status, document, durable=False)
                self._status = document
            if text != self._motd:
                write_motd(machine.places, text)
                self._motd = text
        except OSError as e:
            self.journal.log(
                Event.DEGRADED, f"{machine.places.runtime} cannot be written: {os.strerror(e.errno or 0)}", source="status"
            )
        line = headline(machine, verdicts)
        if self.rejected:
            line = f"an old configuration is in force, the new one is faulty: {names.clean(self.rejected)}; {line}"
        if not self._started:
            self._started = True
            self.journal.log(Event.STARTED, f"knetstatd guards {', '.join(machine.packages()) or 'no module'}: {line}")
            notify("READY=1", f"STATUS={line}")
        else:
            notify(f"STATUS={line}")


def headline(machine: Machine, verdicts: Sequence[judge.Verdict]) -> str:
    """One line for `systemctl status`: the next kernel's verdict, the worst elsewhere, the running kernel."""
    bad = sorted((v for v in verdicts if not v.ready), key=lambda v: v.urgency)
    parts = [f"{bad[0].title} is NOT ready: {bad[0].reason or bad[0].state}"] if bad else []
    if len(bad) > 1:
        parts.append(f"{len(bad) - 1} more not ready")
    mine = [v for v in verdicts if v.kernel == machine.next]
    if not machine.next:
        parts.insert(0, f"the next kernel is not known: {machine.next_why}")
    elif mine and all(v.ready for v in mine):
        label = judge.role(machine, machine.next)
        parts.insert(0, f"{', '.join(v.package for v in mine)} ready for {machine.next} ({label})")
    if not machine.packages():
        parts.insert(0, machine.unguarded[0])
    if machine.running and machine.running != machine.next:
        parts.append(f"running {machine.running}")
    return "; ".join(parts)


def next_unknown(machine: Machine) -> str:
    """Why it is not known which kernel the next reboot starts, "" if it is, or if there is nothing to guard."""
    return machine.next_why if machine.packages() and not machine.next else ""


def motd(verdicts: Sequence[judge.Verdict], rejected: str = "", unknown: str = "") -> str:
    """What a login is to show: a configuration that was rejected; the worst verdict that does not heal by itself, and its cure.

    "" if there is neither.  rejected: why the last reload was refused.  unknown: see `next_unknown`; said if nothing is worse.
    """
    return _rejected(rejected) + (_worst(verdicts) or _unknown(unknown))


def _rejected(fault: str) -> str:
    if not fault:
        return ""
    text = f"knetstatd: an old configuration is in force, the new one is faulty: {fault}"
    return f"{names.clean(text, 500)}\n  To do: correct it, then: systemctl reload knetstatd\n"


def _unknown(why: str) -> str:
    if not why:
        return ""
    text = f"knetstatd: the next kernel is not known: {why}"
    return f"{names.clean(text, 500)}\n  See: knetstatctl check KERNEL, for the one that you start\n"


def _worst(verdicts: Sequence[judge.Verdict]) -> str:
    wrong = [v for v in verdicts if not v.progress and (not v.ready or v.why in (Why.FAILED, Why.BACKOFF, Why.UNLOADED))]
    if not wrong:
        return ""
    worst = min(wrong, key=lambda v: v.urgency)
    text = f"knetstatd: {worst.title}: {worst.state if worst.ready else 'NOT ready'}"
    lines = [text + (f": {worst.reason}" if worst.reason else ""), f"  To do: {judge.command(worst.fix)}" if worst.fix else ""]
    more = f" ({len(wrong) - 1} more)" if len(wrong) > 1 else ""
    # Some of it was said by programs, and this goes to root's terminal.
    return "".join(f"{names.clean(line, 500)}\n" for line in (*lines, f"  See: knetstatctl status{more}") if line)


def write_motd(places: Places, text: str) -> None:
    """What a login shows, with the time at which it was found; nothing if there is no text."""
    if text:
        files.write(places.motd, f"{time.strftime('%Y-%m-%d %H:%M')} {text}".encode(), durable=False)
    else:
        places.motd.unlink(missing_ok=True)


def not_started(places: Places) -> None:
    """Shows at logins that nobody guards this machine, unless another daemon does."""
    if not locks.held(places.daemon_lock):
        with contextlib.suppress(OSError):
            write_motd(places, "knetstatd does not run: its configuration is faulty\n  See: knetstatctl config\n")


def withdraw(places: Places) -> None:
    """Takes back what is in /run: nobody keeps it true any more."""
    for path in (places.status, places.motd):
        with contextlib.suppress(OSError):
            path.unlink()
