# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that show what is written down: `history` (the journal) and `config` (the configuration in force)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knetstatd.cli import render, subjects, terminal
from knetstatd.core import config, names
from knetstatd.core.errors import UsageError
from knetstatd.core.exits import Exit

if TYPE_CHECKING:
    import argparse


def history(arguments: argparse.Namespace) -> Exit:
    """What happened, newest last."""
    from knetstatd.system import journal

    subjects.only_here(arguments, "reads the journal of the machine that runs")
    if arguments.lines < 1:
        raise UsageError("--lines must be at least 1")
    entries = list(journal.history(arguments.lines, arguments.module, arguments.kernel))[::-1]
    if arguments.json:
        rows = [
            {"time": e.time.isoformat(), "event": e.event.name.lower().replace("_", "-"), "message": e.message, **e.fields}
            for e in entries
        ]
        terminal.show_document({"entries": rows})
        return Exit.OK
    for e in entries:
        colour = {3: "red", 4: "yellow", 5: "bold"}.get(e.event.priority)
        line = names.clean(e.message, 2000)
        shown = render.paint(line, colour, terminal.is_coloured()) if colour else line
        print(f"{e.time.astimezone():%Y-%m-%d %H:%M:%S}  {shown}")
    if not entries:
        terminal.warn("The journal has no entries of knetstatd that you may read.")
        return Exit.UNKNOWN
    return Exit.OK


def configuration(arguments: argparse.Namespace) -> Exit:
    """The configuration in force, and where each value comes from."""
    settings, origins = config.with_origins(subjects.root(arguments))
    rows = config.describe(settings, origins)
    if arguments.json:
        values = {row.name: {"value": getattr(settings, row.name), "from": row.origin} for row in rows}
        terminal.show_document({"settings": values})
        return Exit.OK
    for row in rows:
        print(f"{row.name} = {row.value}  # {row.origin}")
    return Exit.OK
