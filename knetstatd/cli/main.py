# SPDX-License-Identifier: GPL-2.0-or-later
"""knetstatctl: which verb runs, for which root, and how an error is told.

Rule 1: what only one verb needs is imported by that verb: starting Python is most of what `status` and `check` cost.
Rule 2: a verb returns an exit status (core/exits.py), or raises a KnetstatdError that carries one.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from knetstatd.system import guard

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from knetstatd.core.errors import KnetstatdError
    from knetstatd.core.exits import Exit


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point; returns the exit status. argv: None if this is a program of its own, which ends here."""
    if argv is not None:
        return guard.guarded("knetstatctl", lambda: _run(argv))
    # Python's own is 700. What a command makes is no garbage, and was looked through sixty times.
    gc.set_threshold(20_000)
    guard.leave(guard.guarded("knetstatctl", lambda: _run(sys.argv[1:])))


def _run(words: Sequence[str]) -> int:
    from knetstatd.cli import arguments as commandline
    from knetstatd.core.errors import KnetstatdError, UnknownError

    os.umask(0o022)  # an administrator's own may be narrower: what is built is everybody's to read, as dkms makes it
    arguments = commandline.parse(words)
    try:
        return _verb(arguments.verb)(arguments)
    except KnetstatdError as e:
        return _tell(arguments, e)
    except PermissionError as e:
        path = e.filename if isinstance(e.filename, str) else ""
        return _tell(arguments, UnknownError("this user may not read it, or not write it", path, "Run this as root"))


def _verb(name: str) -> Callable[[argparse.Namespace], Exit]:
    """What carries a verb out."""
    match name:
        case "status" | "check" | "verify":
            from knetstatd.cli import verdicts

            return {"status": verdicts.status, "check": verdicts.check, "verify": verdicts.verify}[name]
        case "explain":
            from knetstatd.cli import explain

            return explain.verb
        case "resign":
            from knetstatd.cli import resign

            return resign.verb
        case "build" | "repair" | "compile" | "trial" | "initrd" | "keys":
            from knetstatd.cli import work

            special = {"build": work.build, "repair": work.repair, "initrd": work.make_initrd, "keys": work.lend_keys}
            return special.get(name, work.unit_program)
        case "step":
            from knetstatd.cli import work

            return work.step
        case "rehearse":
            from knetstatd.cli import rehearse

            return rehearse.verb
        case "sockets":
            from knetstatd.cli import sockets

            return sockets.verb
    from knetstatd.cli import records

    return {"history": records.history, "config": records.configuration}[name]


def _tell(arguments: argparse.Namespace, e: KnetstatdError) -> int:
    """Says an error: on standard error, and as a document if that was asked for."""
    from knetstatd.cli import terminal

    if getattr(arguments, "json", False):
        terminal.show_document({"error": {"what": e.what, "where": e.where, "fix": e.fix}})
    terminal.warn(f"knetstatctl: {e}")
    return e.exit_code
