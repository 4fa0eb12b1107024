# SPDX-License-Identifier: GPL-2.0-or-later
"""Verdicts: what an observation and the planner's step mean for a person and for a script.

Rule 1: `ready` says one thing: reboot into this kernel, and the module will load. It is computed from the files, never from
        the planner's progress; but where this kernel runs, what it says and shows counts more than the analysis.
Rule 2: whatever is not ready has a reason, and a fix where there is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from . import answers, attempts, kernels, live, names, plan
from .model import Action, Artefact, Check, Kind, Loaded, Rehearsed, Result, Why

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .model import Observation, Step
    from .observe import Machine, Seen
    from .packages import Unfinished

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

    module: str
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
        return f"{self.module}{version} for {self.kernel}" + (f" ({self.role})" if self.role else "")

    def json(self) -> dict[str, Any]:
        """The verdict as it stands in every JSON document."""
        return {
            "module": self.module,
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
        module=o.module,
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
        + answers.checks(seen.about, seen.answer, machine.no_rehearsal),
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
            fix = f"When nothing uses it: modprobe -r {live.PROBED} && modprobe {live.PROBED}"
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
            again = f"loaded again {plan.LOADS} times within an hour and unloaded each time: it is not loaded again for now"
            left = "somebody has unloaded it, and it is left out, as the configuration asks"
            return again if machine.limits.reload else left, f"Run: knetstatctl build {o.kernel}"
        case Action.GIVE_UP, Why.NOT_REHEARSED:
            return f"a rehearsal is required, and {machine.no_rehearsal}", answers.FIX
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
        "modules": list(machine.modules()),
        "kernels": {kernel: str(machine.state_of(kernel)) for kernel in machine.kernels.kernels},
        "refused": [{"name": names.show(name), "reason": reason} for name, reason in machine.refused()],
        "verdicts": [v.json() for v in verdicts],
    }


_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}


def paint(text: str, colour: str, enabled: bool) -> str:
    """Text in a colour, for a terminal that wants it."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if enabled else text


def colour(v: Verdict) -> str:
    """Green: ready. Yellow: under way, or ready with a remark. Red: not ready."""
    if v.ready:
        return "green" if v.state == "ready" else "yellow"
    return "yellow" if v.progress else "red"


def command(fix: str) -> str:
    """A cure after a word that says already that it is one."""
    return fix.removeprefix("Run: ")


def table(rows: Sequence[Sequence[str]], colours: Sequence[str] | None, enabled: bool, width: int = 0) -> str:
    """Rows under a header, padded. colours: of each row's last column but one.

    width: the terminal's; the last column of a row that is wider goes below it, wrapped. 0: it is as long as it is.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        if number == 0:
            lines.append(paint("  ".join([*cells, row[-1]]).rstrip(), "bold", enabled))
            continue
        last, below = row[-1], ""
        if 0 < width < len("  ".join([*cells, last])):
            last, below = "", last
        if colours is not None:
            cells[-1] = paint(cells[-1], colours[number - 1], enabled)
        lines.append("  ".join([*cells, last]).rstrip())
        if below:
            lines += _wrapped(below, width)
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, indented, broken only between words."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) + 5 > width:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"   {line}" for line in lines]


def status_text(
    machine: Machine, verdicts: Sequence[Verdict], enabled: bool, *, at_work: bool = False, width: int = 0
) -> str:
    """What `knetstatctl status` prints: a table, and underneath the one thing to do next.

    at_work: the daemon runs, and takes the steps that are under way by itself.  width: see `table`.
    """
    if not verdicts:
        if machine.modules():
            return "There is nothing to guard: no kernel in /lib/modules can be booted."
        return "No module is guarded.\n\nNext: set `modules` in /etc/knetstatd/knetstatd.toml, see knetstatd.toml(5)"
    rows, above = [("KERNEL", "", "MODULE", "STATE", "")], ""
    for v in verdicts:
        which = ("", "") if width and v.kernel == above else (v.kernel, v.role)
        reason = "" if v.state == "ready" or v.why == Why.OWN_RUN else v.reason
        rows.append((*which, f"{v.module} {v.version}".strip(), v.state, reason))
        above = v.kernel
    text = table(rows, [colour(v) for v in verdicts], enabled, width)
    guarded = {v.kernel for v in verdicts}
    for kernel in machine.kernels.kernels:
        if kernel not in guarded:
            text += f"\n{kernel}  not guarded ({machine.state_of(kernel)})"
    for name, reason in machine.refused():
        text += f"\n{names.show(name)}  left alone: {reason}"
    left = [v for v in sorted(verdicts, key=urgency) if v.state != "ready" and not (at_work and v.progress)]
    first = next((v for v in left if v.fix), None)
    if first is not None:
        label = f"Next, for {first.module} on {first.kernel}:" if len(left) > 1 else "Next:"
        text += f"\n\n{paint(label, 'bold', enabled)} {command(first.fix)}"
    elif machine.next and verdicts and all(v.ready for v in verdicts):
        text += "\n\nSafe to reboot."
    return text


def urgency(v: Verdict) -> tuple[bool, bool, bool]:
    """A key by which the verdict to do something about comes first."""
    return (v.ready, v.progress, "next" not in v.role)


_MARKS = {Result.PASS: "green", Result.FAIL: "red", Result.WARN: "yellow", Result.UNKNOWN: "yellow"}


def checks_text(checks: Sequence[tuple[str, Check]], enabled: bool) -> list[str]:
    """The lines for checks, grouped by file."""
    lines, last = [], ""
    for file, check in checks:
        if file != last:
            lines.append(f"  {file}")
            last = file
        mark = paint(f"{check.result:<14}", _MARKS.get(check.result, "bold"), enabled)
        lines.append(f"    {mark}  {check.name}" + (f": {check.found}" if check.found else ""))
        if check.result in (Result.FAIL, Result.WARN, Result.UNKNOWN):
            lines += [f"        expected: {check.expected}"] if check.expected else []
            lines += [f"        reason:   {check.reason}"] if check.reason else []
            lines += [f"        fix:      {check.fix}"] if check.fix else []
    return lines
