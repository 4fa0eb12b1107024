# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that answer from files: `status`, `check` and `verify`. None of them changes anything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.boot.bootloader import Basis
from knetstatd.cli import render, subjects, terminal
from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.exits import Exit
from knetstatd.core.model import Result, Why
from knetstatd.system import locks
from knetstatd.verdict import judge
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from knetstatd.core.model import Proof
    from knetstatd.verdict.observe import Machine

# What monitoring systems call these exit statuses.
_WORDS = {Exit.OK: "OK", Exit.FAILED: "CRITICAL", Exit.UNKNOWN: "UNKNOWN", Exit.IN_PROGRESS: "WARNING"}


def status(arguments: argparse.Namespace) -> Exit:
    """Shows every guarded package on every guarded kernel, and the one thing to do next."""
    machine = subjects.machine(arguments)
    verdicts = subjects.verdicts(machine, subjects.guarded(machine))
    if arguments.json:
        terminal.show_document(judge.document(machine, verdicts))
        return Exit.OK
    runs = bool(machine.running) and locks.held(machine.places.daemon_lock)
    print(render.status_text(machine, verdicts, terminal.is_coloured(), at_work=runs, width=terminal.width()))
    if not machine.running:
        print(f"This is about {names.clean(str(machine.root))}, which does not run: commands are to be run in it.")
    elif not runs:
        print("The daemon does not run: systemctl start knetstatd")
    return Exit.OK


def check(arguments: argparse.Namespace) -> Exit:
    """Is it safe to reboot? One line and an exit status."""
    machine = subjects.machine(arguments)
    verdicts = subjects.verdicts(machine, subjects.kernels(machine, arguments.kernel))
    code = exit_code(machine, verdicts)
    if arguments.json:
        terminal.show_document(judge.document(machine, verdicts) | {"exit": code})
    elif not arguments.quiet:
        assumed = arguments.kernel == "next" and machine.next_basis is Basis.ASSUMED
        print(f"{_WORDS[code]}: {summary(machine, arguments.kernel, verdicts)}{f' ({machine.next_why})' if assumed else ''}")
        for v in _not_ready(verdicts) if code != Exit.IN_PROGRESS else ():
            print(f"  {v.title}: {v.fix or v.reason or v.state}")
    return code


def exit_code(machine: Machine, verdicts: Sequence[judge.Verdict]) -> Exit:
    """One exit status for several verdicts: not ready beats unknown beats in progress beats ready; none at all is unknown."""
    if not verdicts or any(v.state in (State.NOT_A_KERNEL, State.NO_BOOT_IMAGE) for v in verdicts):
        return Exit.UNKNOWN
    someone = bool(machine.running) and any(map(locks.held, (machine.places.daemon_lock, machine.places.build_lock)))
    codes = {_exit_code(v, someone) for v in verdicts}
    return next(code for code in (Exit.FAILED, Exit.UNKNOWN, Exit.IN_PROGRESS, Exit.OK) if code in codes)


def _exit_code(v: judge.Verdict, someone: bool) -> Exit:
    """someone: a daemon or a builder of ours runs, and will do what is to be done."""
    if v.progress and someone:
        return Exit.IN_PROGRESS
    if v.ready:
        return Exit.OK
    return Exit.UNKNOWN if is_unknown(v) else Exit.FAILED


def is_unknown(v: judge.Verdict) -> bool:
    """Whether nothing stands against a module, and something that decides cannot be known: this user may not read its file."""
    results = {check.result for _, check in v.checks if check.name == "file" or check.result is Result.FAIL}
    unreadable = Result.UNKNOWN in results and Result.FAIL not in results and v.why != Why.FAILED
    return not v.ready and (unreadable or not v.state.known)


def summary(machine: Machine, word: str, verdicts: Sequence[judge.Verdict]) -> str:
    """The verdicts in one line. word: the kernels that were asked for, as the command line has it."""
    if not verdicts:
        if not machine.packages():
            return "; ".join(machine.unguarded)
        return f"the next kernel is not known: {machine.next_why}" if word == "next" else f"no kernel is {word}"
    bad = _not_ready(verdicts)
    if not bad:
        return ", ".join(f"{v.title} is ready" + (f": {v.reason}" if v.reason else "") for v in verdicts)
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{bad[0].title} is {'unknown' if is_unknown(bad[0]) else 'not ready'}: {bad[0].reason or bad[0].state}{more}"


def _not_ready(verdicts: Sequence[judge.Verdict]) -> list[judge.Verdict]:
    return sorted((v for v in verdicts if not v.ready), key=lambda v: v.urgency)


def verify(arguments: argparse.Namespace) -> Exit:
    """Will this module file, or will the installed ones, load on that kernel?"""
    if arguments.kernel == "all":
        raise UsageError("verify is about one kernel: a release, next or running")
    machine = subjects.machine(arguments)
    kernel = subjects.one_kernel(machine, arguments.kernel, "knetstatctl verify --kernel KERNEL")
    look = machine.look(kernel)
    if arguments.file is not None:
        proofs = [machine.prove_file(look, Path(arguments.file).absolute())]
    else:
        proofs = list(machine.prove_installed(look, *machine.packages()))
        if not proofs:
            raise KnetstatdError(f"no guarded module is installed for {kernel}", fix=f"Run: knetstatctl build {kernel}")
    if arguments.json:
        checks = [judge.check_json(proof.path, check) for proof in proofs for check in proof.checks]
        terminal.show_document({"kernel": kernel, "loads": all(proof.loads for proof in proofs), "checks": checks})
    for proof in () if arguments.json else proofs:
        word, colour = _judged(proof)
        shown = render.paint(word, colour, terminal.is_coloured())
        print(f"{names.clean(proof.path) or 'no file'}: {shown} on {kernel}")
        print("\n".join(render.checks_text([("", check) for check in proof.checks], terminal.is_coloured())))
    if all(proof.loads for proof in proofs):
        return Exit.OK
    return Exit.FAILED if any(proof.fails for proof in proofs) else Exit.UNKNOWN


def _judged(proof: Proof) -> tuple[str, str]:
    """A proof in words, and their colour."""
    if proof.loads:
        return "loads", "green"
    if proof.is_refused:
        return "will not load", "red"
    return ("may load, but is not the right one", "red") if proof.fails else ("it is not known whether it loads", "yellow")
