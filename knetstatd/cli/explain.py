# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl explain: why a module is as it is on a kernel, the last failure, the trap in its build files, and the cures."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from knetstatd.cli import render, subjects, terminal
from knetstatd.core.exits import Exit
from knetstatd.core.model import Retry, Why
from knetstatd.diagnosis import uname_traps
from knetstatd.repair import find
from knetstatd.system import files
from knetstatd.verdict import judge

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from knetstatd.diagnosis.uname_traps import Override, RunningKernelRead
    from knetstatd.verdict.observe import Machine, Seen

_RETRIES = {
    Retry.NEVER: "no: waiting does not heal this; it is tried again when source, headers or compiler change",
    Retry.TWICE: "twice; then when source, headers or compiler change",
    Retry.BACKOFF: "yes, by itself, ever more slowly",
    Retry.AFTER_TRANSACTION: "yes, by itself, when the package transaction is over",
}


def verb(arguments: argparse.Namespace) -> Exit:
    """Prints what is behind each verdict on a kernel."""
    machine = subjects.machine(arguments)
    kernel = subjects.one_kernel(machine, arguments.kernel, "knetstatctl explain KERNEL")
    looks = subjects.looks(machine, [kernel], machine.packages())
    if arguments.json:
        terminal.show_document(document(machine, looks))
        return Exit.OK
    shown = [text(machine, seen, v, terminal.is_coloured()) for seen, v in looks]
    print("\n\n".join(shown) or "; ".join(machine.unguarded))
    return Exit.OK


def text(machine: Machine, seen: Seen, v: judge.Verdict, enabled: bool) -> str:
    """What `knetstatctl explain` prints for one module and kernel: the verdict, its grounds, the last failure, the cure."""
    lines = [render.paint(f"{v.title}: {v.state}", render.colour(v), enabled)]
    if v.reason:
        lines.append(f"  Reason:  {v.reason}")
    if v.fix:
        lines.append(f"  Fix:     {v.fix}")
    attempt = seen.observation.attempt
    if attempt is not None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(attempt.when))
        lines.append(f"  Last failure ({attempt.kind}, attempt {attempt.times}, {when}): {attempt.reason}")
        lines += [f"    | {line}" for line in attempt.evidence]
        lines.append(f"  Retry:   {_RETRIES[attempt.kind.retry]}")
        if attempt.log:
            lines.append(f"  Log:     {attempt.log}")
    reads, override = grounds(machine, seen)
    wrong = find.outcome(machine, seen.observation.package) if override is not None else ""
    for read in reads:
        passed = "which dkms.conf sets" if read.passed else "which dkms.conf does not set"
        what = f"sets {read.variable}, {passed}" if read.variable else "decides by itself"
        lines.append(f"  Wrong-kernel trap: {read.file} line {read.line} reads the running kernel and {what}:")
        lines.append(f"    | {read.text}")
    if override is not None and wrong is None:
        lines.append("  Whether dkms builds for the right kernel all the same: `knetstatctl repair` tries it")
    if override is not None and wrong:
        how = f"`knetstatctl repair` writes {override.path}, or write it yourself"
        directory, _, name = override.path.rpartition("/")
        if os.path.lexists(files.inside(machine.root, directory) / name):
            how = f"put this into {override.path}"
        lines.append(f"  Cure for good: {how}:")
        lines += [f"    | {line}" for line in override.text.splitlines()]
    lines += render.checks_text(v.checks, enabled)
    lines += [f"    | {line}" for line in (seen.answer.words if v.why == Why.REHEARSAL and seen.answer else ())]
    return "\n".join(lines)


def grounds(machine: Machine, seen: Seen) -> tuple[tuple[RunningKernelRead, ...], Override | None]:
    """The lines of the module's build files that read the running kernel, and the override that cures them if they decide."""
    if seen.source is None:
        return (), None
    return uname_traps.reads(seen.source, seen.passed), find.cure(machine, seen.observation.package)[1]


def document(machine: Machine, looks: Sequence[tuple[Seen, judge.Verdict]]) -> dict[str, Any]:
    """The JSON document: the verdicts with what is behind them."""
    made = judge.document(machine, [v for _, v in looks])
    for row, (seen, _) in zip(made["verdicts"], looks, strict=True):
        attempt = seen.observation.attempt
        reads, override = grounds(machine, seen)
        row["last_failure"] = attempt and {
            **attempt._asdict(), "evidence": list(attempt.evidence), "retry": attempt.kind.retry
        }  # fmt: skip
        row["running_kernel_reads"] = [r._asdict() for r in reads]
        wrong = find.outcome(machine, seen.observation.package)
        row["override"] = override._asdict() if override is not None and wrong else None
    return made
