# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl: asks the machine itself, with or without the daemon.

What only one verb needs is imported by that verb: starting Python is most of what `status` and `check` cost.

Exit codes: 0 ready or done, 1 not ready or failed, 2 wrong usage, 3 unknown, 75 in progress, 78 faulty configuration.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knetstatd.cli import arguments as commandline
from knetstatd.cli import render
from knetstatd.core import config, names
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.state import attempts
from knetstatd.system import locks
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from knetstatd.verdict.observe import Seen

READY, NOT_READY, USAGE, UNKNOWN, IN_PROGRESS = 0, 1, 2, 3, 75


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status."""
    words = sys.argv[1:] if argv is None else argv
    arguments = commandline.parser(*words[:1]).parse_args(words)
    try:
        code = _VERBS[arguments.verb](arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that has gone is met here, not while Python ends
        return code
    except KnetstatdError as e:
        return _told(arguments, e, e.exit_code)
    except PermissionError as e:
        where = os.fspath(e.filename or "")
        return _told(arguments, KnetstatdError("you may not read it, or write it", where, "Run this as root"), UNKNOWN)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _told(arguments: argparse.Namespace, e: KnetstatdError, code: int) -> int:
    if getattr(arguments, "json", False):
        _print({"schema": judge.SCHEMA, "error": {"what": e.what, "where": e.where, "fix": e.fix}})
    print(f"knetstatctl: {e}", file=sys.stderr)
    return code


def _machine() -> Machine:
    root = Path("/")
    machine = Machine(root, config.load(root))
    machine.refresh()
    return machine


def _print(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2))


def _coloured() -> bool:
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _width() -> int:
    """The terminal's columns; 0 where standard output is something else."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 0


def _kernels(machine: Machine, word: str) -> tuple[str, ...]:
    """The kernels that a word on the command line means. Raises UsageError; `UNKNOWN` is for words without an answer."""
    match word:
        case "next":
            return (machine.next,) if machine.next else ()
        case "running":
            return (machine.running,)
        case "all":
            return tuple(k for k in machine.kernels.kernels if k in machine.wanted())
    names.kernel(word)
    if word not in machine.kernels.kernels:
        there = ", ".join(machine.kernels.kernels) or "none"
        raise UsageError(f"there is no kernel {word} in /lib/modules", fix=f"There are: {there}")
    return (word,)


def _looks(machine: Machine, kernels: Sequence[str], modules: Sequence[str]) -> list[tuple[Seen, judge.Verdict]]:
    found = []
    for look in (machine.look(kernel, modules) for kernel in kernels):
        for package in modules:
            seen = machine.observe(look, package)
            found.append((seen, judge.verdict(machine, seen, machine.plan(seen, attempts.now()))))
    return found


def _verdicts(machine: Machine, kernels: Sequence[str]) -> list[judge.Verdict]:
    return [verdict for _, verdict in _looks(machine, kernels, machine.packages())]


def _guarded(machine: Machine) -> tuple[str, ...]:
    return tuple(k for k in machine.kernels.kernels if k in machine.wanted())


def _status(arguments: argparse.Namespace) -> int:
    machine = _machine()
    verdicts = _verdicts(machine, _guarded(machine))
    if arguments.json:
        _print(judge.document(machine, verdicts))
    else:
        at_work = locks.held(machine.places.daemon_lock)
        print(render.status_text(machine, verdicts, _coloured(), at_work=at_work, width=_width()))
        if not at_work:
            print("The daemon does not run: systemctl start knetstatd")
    return READY


def _check(arguments: argparse.Namespace) -> int:
    machine = _machine()
    kernels = _kernels(machine, arguments.kernel)
    verdicts = _verdicts(machine, kernels)
    code = _code(machine, verdicts)
    if arguments.json:
        _print(judge.document(machine, verdicts) | {"exit": code})
    elif not arguments.quiet:
        word = {READY: "OK", NOT_READY: "CRITICAL", IN_PROGRESS: "WARNING"}.get(code, "UNKNOWN")
        print(f"{word}: {_summary(machine, arguments.kernel, verdicts)}")
        for v in _not_ready(verdicts) if code != IN_PROGRESS else ():
            print(f"  {v.title}: {v.fix or v.reason or v.state}")
    return code


def _code(machine: Machine, verdicts: Sequence[judge.Verdict]) -> int:
    """One exit status for several verdicts: not ready beats in progress beats ready; nothing to judge is unknown."""
    if not verdicts or any(v.state in (State.NOT_A_KERNEL, State.NO_BOOT_IMAGE) for v in verdicts):
        return UNKNOWN
    at_work = locks.held(machine.places.daemon_lock) or locks.held(machine.places.build_lock)
    left = [v for v in verdicts if not v.ready and not (v.progress and at_work)]
    if left:
        return NOT_READY if any(v.state.known for v in left) else UNKNOWN
    return IN_PROGRESS if any(v.progress and at_work for v in verdicts) else READY


def _summary(machine: Machine, word: str, verdicts: Sequence[judge.Verdict]) -> str:
    if not verdicts:
        if not machine.packages():
            return "no module is guarded; set `modules` in /etc/knetstatd/knetstatd.toml"
        return f"no kernel is {word}"
    bad = _not_ready(verdicts)
    if not bad:
        return ", ".join(f"{v.title} is {v.state if v.state.ready else f'ready, and {v.state}'}" for v in verdicts)
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{bad[0].title} is not ready: {bad[0].reason or bad[0].state}{more}"


def _not_ready(verdicts: Sequence[judge.Verdict]) -> list[judge.Verdict]:
    return sorted((v for v in verdicts if not v.ready), key=lambda v: v.urgency)


def _verify(arguments: argparse.Namespace) -> int:
    if arguments.kernel == "all":
        raise UsageError("verify is about one kernel: a release, next or running")
    machine = _machine()
    kernels = _kernels(machine, arguments.kernel)
    if not kernels:
        raise UsageError("no kernel to boot next was found", fix="Name one with --kernel")
    kernel = kernels[0]
    if arguments.file is not None:
        proofs = [machine.prove_file(machine.look(kernel), Path(arguments.file).absolute())]
    else:
        proofs = list(machine.prove_installed(machine.look(kernel), *machine.packages()))
        if not proofs:
            raise KnetstatdError(f"no guarded module is installed for {kernel}", fix=f"Run: knetstatctl build {kernel}")
    loads = all(proof.loads for proof in proofs)
    if arguments.json:
        checks = [judge.check_json(proof.path, check) for proof in proofs for check in proof.checks]
        _print({"schema": judge.SCHEMA, "kernel": kernel, "loads": loads, "checks": checks})
    else:
        for proof in proofs:
            word = (
                render.paint("loads", "green", _coloured())
                if proof.loads
                else render.paint("will not load", "red", _coloured())
            )
            print(f"{names.clean(proof.path) or 'no file'}: {word} on {kernel}")
            print("\n".join(render.checks_text([("", check) for check in proof.checks], _coloured())))
    return READY if loads else NOT_READY


def _build(arguments: argparse.Namespace) -> int:
    from knetstatd.build import run
    from knetstatd.system.journal import Journal
    from knetstatd.system.progress import Progress

    if os.geteuid() != 0:
        raise KnetstatdError("building needs root", fix=f"Run: sudo knetstatctl build {arguments.kernel}")
    machine = _machine()
    modules = machine.packages() if arguments.module is None else (names.package(arguments.module),)
    kernels = _kernels(machine, arguments.kernel)
    if not kernels or not modules:
        raise UsageError(_summary(machine, arguments.kernel, []))
    journal = Journal(quiet="JOURNAL_STREAM" in os.environ)
    if arguments.step is not None:
        # Told and remembered by the builder; busy: somebody builds by hand, and the daemon looks again after that.
        done = run.step_by_step(machine, journal, kernels[0], modules, arguments.step)
        return IN_PROGRESS if done is None else READY if done else NOT_READY
    progress = Progress(shown=not arguments.json)
    run.run_manual(machine, journal, progress, kernels, modules, wait=not arguments.no_wait)
    machine.refresh()
    verdicts = [verdict for _, verdict in _looks(machine, kernels, modules)]
    if arguments.json:
        _print(judge.document(machine, verdicts))
    else:
        print(render.status_text(machine, verdicts, _coloured(), width=_width()))
    return READY if all(v.ready for v in verdicts) else NOT_READY


def _rehearse(arguments: argparse.Namespace) -> int:
    from knetstatd.cli import rehearse

    machine = _machine()
    return rehearse.verb(machine, _kernels(machine, arguments.kernel), arguments, _coloured())


def _program(arguments: argparse.Namespace) -> int:
    from knetstatd.build import compile_unit
    from knetstatd.rehearsal import rehearse

    program = {"compile": compile_unit.unit_program, "trial": rehearse.unit_program}[arguments.verb]
    program(_machine(), arguments.what, os.environ.get("CACHE_DIRECTORY", ""))
    return READY


def _explain(arguments: argparse.Namespace) -> int:
    from knetstatd.cli import explain

    machine = _machine()
    kernels = _kernels(machine, arguments.kernel)
    if not kernels:
        raise UsageError("no kernel to boot next was found", fix="Name one: knetstatctl explain KERNEL")
    looks = _looks(machine, kernels, machine.packages())
    if arguments.json:
        _print(explain.document(machine, looks))
    else:
        shown = [explain.text(seen, v, *explain.grounds(machine, seen), _coloured()) for seen, v in looks]
        print("\n\n".join(shown) or "No module is guarded.")
    return READY


def _repair(arguments: argparse.Namespace) -> int:
    from knetstatd.repair import apply

    machine = _machine()
    arguments.all |= arguments.kernel == "all"
    kernels = () if arguments.all else _kernels(machine, arguments.kernel)
    code, document = apply.command(arguments, machine, kernels)
    if arguments.json:
        _print(document)
    return code


def _history(arguments: argparse.Namespace) -> int:
    from knetstatd.system.journal import history

    if arguments.lines < 1:
        raise UsageError("--lines must be at least 1")
    entries = list(history(arguments.lines, arguments.module, arguments.kernel))[::-1]
    if arguments.json:
        rows = [
            {"time": e.time.isoformat(), "event": e.event.name.lower().replace("_", "-"), "message": e.message, **e.fields}
            for e in entries
        ]
        _print({"schema": judge.SCHEMA, "entries": rows})
        return READY
    for e in entries:
        colour = {3: "red", 4: "yellow", 5: "bold"}.get(e.event.priority)
        line = names.clean(e.message, 2000)
        print(f"{e.time.astimezone():%Y-%m-%d %H:%M:%S}  {render.paint(line, colour, _coloured()) if colour else line}")
    if not entries:
        print("The journal has no entries of knetstatd that you may read.", file=sys.stderr)
        return UNKNOWN
    return READY


def _sockets(arguments: argparse.Namespace) -> int:
    from knetstatd.cli import sockets

    rows = sockets.select(Path("/"), arguments)
    if arguments.json:
        _print(sockets.document(rows))
    else:
        print(sockets.text(rows, _coloured()))
    return READY


def _config(arguments: argparse.Namespace) -> int:
    settings, origins = config.with_origins(Path("/"))
    rows = config.describe(settings, origins)
    if arguments.json:
        _print(
            {
                "schema": judge.SCHEMA,
                "settings": {r.name: {"value": getattr(settings, r.name), "from": r.origin} for r in rows},
            }
        )
        return READY
    for r in rows:
        print(f"{r.name} = {r.value}  # {r.origin}")
    return READY


_VERBS = {
    "status": _status,
    "check": _check,
    "verify": _verify,
    "build": _build,
    "rehearse": _rehearse,
    "explain": _explain,
    "repair": _repair,
    "history": _history,
    "sockets": _sockets,
    "config": _config,
    "compile": _program,
    "trial": _program,
}
