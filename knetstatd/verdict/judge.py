# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts: what an observation and the planner's step mean for a person and for a script.

Rule 1: `ready` says one thing: reboot into this kernel, and the module will load. It is computed from the files, never from
        the planner's progress; but if this kernel runs, what it says and shows counts more than the analysis.
Rule 2: a verdict that is not ready has a reason, and a fix if there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names
from knetstatd.core.events import Event
from knetstatd.core.model import Action, Artefact, Kind, Retry
from knetstatd.machine import dpkg_status
from knetstatd.state import attempts, rehearsal_results
from knetstatd.verdict import states
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.core.model import Attempt, Check, Step
    from knetstatd.machine.dpkg_status import Unfinished
    from knetstatd.verdict.observe import Machine, Seen

SCHEMA = 1


class Verdict(NamedTuple):
    """The verdict for one package and one kernel.

    role: what the kernel is to this machine: "next", "running", "next, running" or "".
    ready: see rule 1.  progress: something is under way that may change it.  event: what the journal calls a change to it.
    proof: what `ready` rests on: "rehearsed", "analysed" or "none".  why: the planner's token.
    """

    package: str
    version: str
    kernel: str
    role: str
    state: State
    ready: bool
    progress: bool
    proof: str
    reason: str
    fix: str
    checks: tuple[tuple[str, Check], ...]
    why: str
    log: str
    event: Event | None = None

    @property
    def title(self) -> str:
        """How a log line begins: package, version, kernel."""
        version = f" {self.version}" if self.version else ""
        return f"{self.package}{version} for {self.kernel}" + (f" ({self.role})" if self.role else "")

    @property
    def urgency(self) -> tuple[bool, bool, bool]:
        """A key by which the verdict to do something about comes first."""
        return (self.ready, self.progress, "next" not in self.role)

    def json(self) -> dict[str, Any]:
        """The verdict as it stands in every JSON document."""
        return {
            "package": self.package,
            "version": self.version,
            "kernel": self.kernel,
            "role": self.role,
            "state": self.state,
            "ready": self.ready,
            "in_progress": self.progress,
            "proof": self.proof,
            "reason": self.reason,
            "fix": self.fix,
            "why": self.why,
            "documentation": self.state.documentation,
            "log": self.log,
            "checks": [check_json(file, check) for file, check in self.checks],
        }


def check_json(file: str, check: Check) -> dict[str, str]:
    """One check in a JSON document."""
    return {"file": file, **{key: str(value) for key, value in check._asdict().items()}}


def role(machine: Machine, kernel: str) -> str:
    """What a kernel is to this machine: next, running, both, or neither ("")."""
    return ", ".join(w for w, k in (("next", machine.next), ("running", machine.running)) if k == kernel)


def verdict(machine: Machine, seen: Seen, step: Step) -> Verdict:
    """The verdict that follows from an observation and the planner's answer to it."""
    o, case = seen.observation, states.Case(machine, seen, step)
    row, judgement = states.row(case), states.judgement(case)
    state = row.state(judgement)
    ready = judgement.ready if state.ready is None else state.ready
    made = Verdict(
        package=o.package,
        version=o.version,
        kernel=o.kernel,
        role=role(machine, o.kernel),
        state=state,
        ready=ready,
        progress=row.progress and (case.guarded or step.action is Action.WAIT),
        proof="rehearsed" if seen.answer is not None else "analysed" if seen.installed else "none",
        reason=row.reason(case),
        fix=row.fix(case),
        checks=tuple((proof.path, check) for _, proof in seen.installed for check in proof.checks)
        + rehearsal_results.checks(seen.subject, seen.answer, machine.no_rehearsal),
        why=step.why,
        log=o.attempt.log if o.attempt else "",
        event=row.event if ready or row.event is not Event.READY else None,
    )
    if ready and not made.reason and seen.remarks:
        made = made._replace(reason="; ".join(remark.reason for remark in seen.remarks), fix=seen.remarks[0].fix)
    left = machine.unfinished(o.kernel)
    return _half_configured(made, left, lacking=lacks_initrd(seen)) if left else made


def lacks_initrd(seen: Seen) -> bool:
    """Whether nothing but the kernel's initrd stands against installed modules: who finishes the kernel's package makes it."""
    proofs = [proof for _, proof in seen.installed]
    return seen.observation.installed is Artefact.DENIED and all(proof.holds(frozenset({"initrd"})) for proof in proofs)


def _half_configured(made: Verdict, left: Sequence[Unfinished], *, lacking: bool) -> Verdict:
    """The verdict for a kernel whose packages were left half-way: it may have no initrd, and no entry in the boot menu.

    lacking: nothing but its initrd stands against the modules.
    """
    said, boots = ", ".join(f"{p.name} is {p.state}" for p in left), any(p.boots for p in left)
    if not made.ready and not (lacking and boots):
        return made._replace(reason="; ".join(filter(None, (made.reason, f"besides, {said}"))))
    broken = [p.name for p in left if p.state not in dpkg_status.CONFIGURABLE]
    fix = f"apt-get install --reinstall {' '.join(broken)}" if broken else f"knetstatctl repair {made.kernel}"
    reason = f"the module is good, but {said}: a hook failed, or the installation was interrupted"
    if boots:
        made = made._replace(
            ready=False, progress=False, state=State.KERNEL_HALF_CONFIGURED, why=states.HALF_CONFIGURED,
            event=Event.HALF_CONFIGURED,
        )  # fmt: skip
    return made._replace(reason=reason, fix=fix)


def document(machine: Machine, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The document of `status --json`, `check --json` and /run/knetstatd/status.json."""
    return {
        "schema": SCHEMA,
        "next": machine.next,
        "next_why": machine.next_why,
        "next_basis": machine.next_basis.value,
        "running": machine.running,
        "ready": machine.next in {v.kernel for v in verdicts} and all(v.ready for v in verdicts if v.kernel == machine.next),
        "packages": list(machine.packages()),
        "kernels": {kernel: str(machine.state_of(kernel)) for kernel in machine.kernels.kernels},
        "refused": [{"name": names.show(name), "reason": reason} for name, reason in machine.refused()],
        "verdicts": [v.json() for v in verdicts],
    }


def command(fix: str) -> str:
    """A cure after a word that says already that it is one."""
    return fix.removeprefix("Run: ")


def failure(attempt: Attempt) -> tuple[Event, str]:
    """What the builder tells of a failed attempt: the event, and what the daemon does next."""
    if attempt.kind.retry is Retry.NEVER or (attempt.kind.retry is Retry.TWICE and attempt.times > 2):
        return Event.GAVE_UP, "the daemon does not try again until source, headers or compiler change"
    event, sentence = _FAILURES.get(attempt.kind, (Event.FAILED, "the daemon tries again in {seconds} s"))
    return event, sentence.format(seconds=max(0, round(attempt.not_before - attempts.now())))


_FAILURES = {
    Kind.MISMATCH: (Event.FAILED, "the daemon builds it again for this kernel, once"),
    Kind.DURING_TRANSACTION: (Event.FAILED, "the daemon tries again when the package transaction is over"),
    Kind.REMOVED: (Event.PACKAGE_GONE, "the daemon builds it again if it comes back"),
    Kind.INITRD: (Event.INITRD_FAILED, "the daemon tries again in {seconds} s"),
    Kind.REHEARSAL: (Event.NOT_REHEARSED, "the daemon tries again in {seconds} s"),
}
