# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts: what an observation and the planner's step mean for a person and for a script.

Rule 1: `ready` says one thing: reboot into this kernel, and the module will load. It is computed from the files, never from
        the planner's progress; but where this kernel runs, what it says and shows counts more than the analysis.
Rule 2: whatever is not ready has a reason, and a fix where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from knetstatd.core import names, planner
from knetstatd.core.model import Action, Artefact, Check, Kind, Loaded, Rehearsed, Result, Why
from knetstatd.machine import kernels, loaded_modules
from knetstatd.state import attempts, rehearsal_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.core.model import Observation, Step
    from knetstatd.machine.dpkg_status import Unfinished
    from knetstatd.verdict.observe import Machine, Seen

SCHEMA = 1

_WAITS = {
    Why.OWN_RUN: "being built, or the next in line",
    Why.SETTLING: "waiting until the kernel's files have been quiet for a moment",
    Why.TRANSACTION: "waiting for the end of a package transaction",
    Why.FOREIGN_DKMS: "waiting for somebody else's dkms to end",
    Why.BACKOFF: "waiting before the next attempt",
}
_STEPS = {
    Action.STAGE: "to be built",
    Action.PUBLISH: "built and proven, to be published",
    Action.REHEARSE: "to be rehearsed: this kernel is started in a throwaway machine, and asked to load it",
    Action.LOAD: "to be loaded",
    Action.FETCH_HEADERS: "its headers are to be installed",
}


class Verdict(NamedTuple):
    """The verdict for one module and one kernel.

    state: one of the words below `_state`.  ready: see rule 1.  progress: something is under way that may change it.
    proof: what `ready` rests on: "rehearsed", "analysed" or "none".
    """

    package: str
    version: str
    kernel: str
    role: str
    state: str
    ready: bool
    progress: bool
    proof: str
    reason: str
    fix: str
    checks: tuple[tuple[str, Check], ...]
    why: str
    log: str

    @property
    def title(self) -> str:
        """How a log line begins: module, version, kernel."""
        version = f" {self.version}" if self.version else ""
        return f"{self.package}{version} for {self.kernel}" + (f" ({self.role})" if self.role else "")

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
    """The verdict that follows from what was seen and what the planner makes of it."""
    o = seen.observation
    unasked = machine.config.rehearse == "require" and o.rehearsed in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE)
    refused = step.why is Why.FAILED and o.attempt is not None and o.attempt.loading and o.attempt.kind is not Kind.DENIED
    good = o.installed in (Artefact.GOOD, Artefact.OTHER) and o.rehearsed is not Rehearsed.BAD
    ready = good and not unasked and not refused and o.loaded is not Loaded.FAULTY
    waiting = step.action is Action.WAIT and step.why not in (Why.BACKOFF, Why.NOT_REHEARSED)
    progress = step.action in _STEPS or waiting
    reason, fix = _reason(machine, seen, step)
    made = Verdict(
        package=o.package,
        version=o.version,
        kernel=o.kernel,
        role=role(machine, o.kernel),
        state=_state(seen, step, ready),
        ready=ready,
        progress=progress,
        proof="rehearsed" if seen.answer is not None else "analysed" if seen.installed else "none",
        reason=reason,
        fix=fix,
        checks=tuple((proof.path, check) for _, proof in seen.installed for check in proof.checks)
        + rehearsal_results.checks(seen.subject, seen.answer, machine.no_rehearsal),
        why=step.why,
        log=o.attempt.log if o.attempt else "",
    )
    left = machine.unfinished(o.kernel)
    return _half_configured(made, left) if left else made


def _half_configured(made: Verdict, left: Sequence[Unfinished]) -> Verdict:
    """The verdict for a kernel whose packages were left half-way: it may have no initrd, and no entry in the boot menu."""
    said = ", ".join(f"{p.name} is {p.state}" for p in left)
    if not made.ready:
        return made._replace(reason="; ".join(filter(None, (made.reason, f"besides, {said}"))))
    broken = [p.name for p in left if p.state == "half-installed"]
    fix = f"Run: apt-get install --reinstall {' '.join(broken)}" if broken else f"Run: knetstatctl repair {made.kernel}"
    reason = f"the module is good, but {said}: a hook failed, or the installation was interrupted"
    if any(p.boots for p in left):
        made = made._replace(ready=False, progress=False, state="half-configured", why="half-configured")
    return made._replace(reason=reason, fix=fix)


def _state(seen: Seen, step: Step, ready: bool) -> str:
    o = seen.observation
    match step.action:
        case Action.DONE:
            if step.why is Why.OUTDATED:
                return "ready, outdated copy loaded"
            if step.why is Why.FAULTY:
                return "loaded but faulty"
            return "ready" if ready else str(step.why)
        case Action.REHEARSE:
            return "ready, to be rehearsed" if ready else str(step.why)
        case Action.GIVE_UP:
            if not ready:
                return str(step.why)
            if o.installed is Artefact.GOOD:
                return "ready, not loaded"
            warned = {c.name for _, proof in seen.installed for c in proof.checks if c.result is Result.WARN}
            return "ready, built for another kernel" if "release" in warned else "ready, outdated build"
        case Action.WAIT if step.why is Why.NOT_REHEARSED and ready:
            return "ready"
        case Action.WAIT if step.why is Why.BACKOFF:
            return str(Why.FAILED)
    return "ready, not loaded" if step.action is Action.LOAD else str(step.why)


def _reason(machine: Machine, seen: Seen, step: Step) -> tuple[str, str]:
    """Why it is not simply ready, and what to do about it."""
    o = seen.observation
    proofs = sorted((proof for _, proof in seen.installed), key=lambda proof: proof.loads)
    wrong = next((proof.worst for proof in proofs if proof.worst is not None), None)
    match step.action, step.why:
        case Action.DONE, Why.READY:
            return "", ""
        case Action.DONE, Why.OUTDATED:
            again = f"-a {seen.remark}" if " " in seen.remark else seen.remark
            fix = f"When nothing uses it: modprobe -r {seen.remark} && modprobe {again}"
            return "the copy in the running kernel is not the one that is installed", fix
        case Action.DONE, Why.FAULTY:
            fix = f"When nothing uses it: modprobe -r {loaded_modules.PROBED} && modprobe {loaded_modules.PROBED}"
            return f"loaded, and does not work: {seen.remark}", fix
        case Action.DONE, Why.NO_IMAGE:
            return f"{o.kernel} has modules but no boot image", "Reinstall its image package, or remove the directory"
        case Action.DONE, _:
            return f"/lib/modules/{o.kernel} holds headers or leftovers, not a kernel", ""
        case Action.GIVE_UP, Why.DENIED if wrong is not None:
            return wrong.reason or wrong.found, wrong.fix
        case Action.GIVE_UP, Why.REHEARSAL if seen.answer is not None:
            return seen.answer.reason, seen.answer.fix
        case Action.GIVE_UP, Why.UNLOADED:
            again = f"loaded again {planner.LOADS} times within an hour and unloaded each time: it is not loaded again for now"
            left = "somebody has unloaded it, and it is left out, as the configuration asks"
            return again if machine.limits.reload else left, f"Run: knetstatctl build {o.kernel}"
        case Action.GIVE_UP, Why.NOT_REHEARSED:
            return f"a rehearsal is required, and {machine.no_rehearsal}", rehearsal_results.FIX
        case Action.WAIT, Why.NOT_REHEARSED if o.attempt is not None:
            return f"{o.attempt.reason}; the next attempt is due in {_soon(o, machine)}", f"knetstatctl rehearse {o.kernel}"
        case Action.REHEARSE, _:
            return _STEPS[Action.REHEARSE], f"knetstatctl rehearse {o.kernel}"
        case Action.GIVE_UP, Why.SOURCE_MISSING | Why.SOURCE_BROKEN:
            return seen.source_reason, seen.source_fix
        case Action.GIVE_UP, Why.HEADERS_MISSING | Why.HEADERS_PARTIAL:
            how = kernels.headers_reinstall if step.why is Why.HEADERS_PARTIAL else kernels.headers_fix
            return seen.headers.reason, how(machine.root, o.kernel)
        case (Action.GIVE_UP, _) | (_, Why.BACKOFF) if o.attempt is not None:
            reason = o.attempt.reason
            if step.why is Why.BACKOFF:
                reason += f"; attempt {o.attempt.times} failed, the next is due in {_soon(o, machine)}"
            return reason, o.attempt.fix
        case Action.WAIT, _:
            who = {Why.TRANSACTION: o.transaction, Why.FOREIGN_DKMS: o.foreign_dkms}.get(step.why, "")
            return _WAITS[step.why] + (f": {who}" if who else ""), ""
    text = _STEPS[step.action]
    if step.why is Why.WRONG and seen.answer is not None:
        text += f": in the rehearsal, {seen.answer.reason}"
    elif step.why is Why.WRONG and wrong is not None:
        text += f": the installed one is wrong: {wrong.reason or wrong.found}"
    elif step.action is Action.STAGE:
        text += ": there is none yet"
    return text, f"knetstatctl build {o.kernel}"


def _soon(o: Observation, machine: Machine) -> str:
    assert o.attempt is not None
    seconds = max(0, int(o.attempt.not_before - attempts.now()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


def document(machine: Machine, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """The document of `status --json`, `check --json` and /run/knetstatd/status.json."""
    return {
        "schema": SCHEMA,
        "next": machine.next,
        "next_why": machine.next_why,
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


def urgency(v: Verdict) -> tuple[bool, bool, bool]:
    """A key by which the verdict to do something about comes first."""
    return (v.ready, v.progress, "next" not in v.role)
