# SPDX-License-Identifier: GPL-2.0-or-later
"""How verdicts and checks look on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.boot.bootloader import Basis
from knetstatd.core import names
from knetstatd.core.model import Check, Result
from knetstatd.verdict import judge
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knetstatd.verdict.observe import Machine

_COLOURS = {"green": "32", "yellow": "33", "red": "31", "bold": "1"}


def paint(text: str, colour: str, enabled: bool) -> str:
    """Text in a colour, for a terminal that wants it."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if enabled else text


def colour(v: judge.Verdict) -> str:
    """Green: ready. Yellow: under way, unknown, or ready with a remark. Red: not ready."""
    if v.state is State.READY and not v.reason:
        return "green"
    return "yellow" if v.ready or v.progress or not v.state.known else "red"


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
    machine: Machine, verdicts: Sequence[judge.Verdict], enabled: bool, *, at_work: bool = False, width: int = 0
) -> str:
    """What `knetstatctl status` prints: a table, and underneath the one thing to do next.

    at_work: the daemon runs, and takes the steps that are under way by itself.  width: see `table`.
    """
    if not verdicts:
        if machine.packages():
            return "There is nothing to guard: no kernel in /lib/modules can be booted."
        why, fix = machine.unguarded
        return f"{why[0].upper()}{why[1:]}.\n\nNext: {fix}, see knetstatd.toml(5)"
    rows, above = [("KERNEL", "", "PACKAGE", "STATE", "")], ""
    for v in verdicts:
        which = ("", "") if width and v.kernel == above else (v.kernel, v.role)
        reason = "" if v.state is State.BUILDING else v.reason
        rows.append((*which, f"{v.package} {v.version}".strip(), v.state, reason))
        above = v.kernel
    assumed = machine.next_basis is Basis.ASSUMED
    colours = ["yellow" if assumed and v.kernel == machine.next and v.ready else colour(v) for v in verdicts]
    text = table(rows, colours, enabled, width)
    guarded = {v.kernel for v in verdicts}
    for kernel in machine.kernels.kernels:
        if kernel not in guarded:
            text += f"\n{kernel}  not guarded ({machine.state_of(kernel)})"
    for name, reason in machine.refused():
        text += f"\n{names.show(name)}  left alone: {reason}"
    by_urgency = sorted(verdicts, key=lambda v: v.urgency)
    left = [v for v in by_urgency if v.state is not State.READY and not (at_work and v.progress)]
    first = next((v for v in left if v.fix), None)
    if first is not None:
        label = f"Next, for {first.package} on {first.kernel}:" if len(left) > 1 else "Next:"
        text += f"\n\n{paint(label, 'bold', enabled)} {judge.command(first.fix)}"
    elif (after := [v for v in verdicts if v.kernel == machine.next]) and all(v.ready for v in after):
        text += f"\n\nSafe to reboot if {machine.next} starts: {machine.next_why}." if assumed else "\n\nSafe to reboot."
    if machine.packages() and not machine.next:
        text += f"\n\nThe next kernel is not known: {machine.next_why}."
    return text


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
