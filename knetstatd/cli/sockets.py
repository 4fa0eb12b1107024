# SPDX-License-Identifier: GPL-2.0-or-later
"""`knetstatctl sockets`: knetstat's four files as a table or as JSON, filtered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from knetstatd.cli import render, subjects, terminal
from knetstatd.core.errors import KnetstatdError, UsageError
from knetstatd.core.exits import Exit
from knetstatd.formats import knetstat_proc
from knetstatd.formats.knetstat_proc import Kind
from knetstatd.system import files

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from knetstatd.formats.knetstat_proc import Endpoint, Socket


def verb(arguments: argparse.Namespace) -> Exit:
    """Prints the sockets that were asked for."""
    rows = select(subjects.root(arguments), arguments)
    if arguments.json:
        terminal.show_document(document(rows))
    else:
        print(text(rows, terminal.is_coloured()))
    return Exit.OK


def select(root: Path, asked: argparse.Namespace) -> list[tuple[Kind, Socket]]:
    """The sockets that were asked for. Raises UsageError, and KnetstatdError if the module is not loaded."""
    known = {kind.value: kind for kind in Kind}
    if unknown := [word for word in asked.kinds if word not in known]:
        raise UsageError(f"there is no file {unknown[0]!r}", fix=f"There are: {', '.join(known)}")
    states = {word.upper() for word in asked.state.split(",")} if asked.state else set()
    if unknown := sorted(states - set(knetstat_proc.STATES)):
        raise UsageError(f"there is no state {unknown[0]!r}", fix=f"There are: {', '.join(knetstat_proc.STATES)}")
    options = [_option(text) for text in asked.option]
    chosen = []
    for kind in [known[word] for word in dict.fromkeys(asked.kinds)] or list(Kind):
        for row in _read(root, kind):
            if states and row.state not in states:
                continue
            if all(row.options.get(name) == value if value is not None else name in row.options for name, value in options):
                chosen.append((kind, row))
    return chosen


def _option(text: str) -> tuple[str, int | None]:
    name, equals, value = text.partition("=")
    name = name.upper()
    if name not in (*knetstat_proc.TCP_OPTIONS, *knetstat_proc.UDP_OPTIONS):
        there = ", ".join(dict.fromkeys((*knetstat_proc.TCP_OPTIONS, *knetstat_proc.UDP_OPTIONS)))
        raise UsageError(f"there is no option {name!r}", fix=f"There are: {there}")
    number = value.removesuffix(knetstat_proc.UNITS.get(name, "")) if equals else ""
    if equals and not re.fullmatch("-?[0-9]{1,21}", number):
        raise UsageError(f"{text!r}: the value must be a number", fix="For example: --option SO_KEEPALIVE=1")
    return name, int(number) if equals else None


def _read(root: Path, kind: Kind) -> Sequence[Socket]:
    try:
        return knetstat_proc.table(root, kind)
    except OSError as e:
        fix = "Run: modprobe knetstat" if root == files.HERE else "A system that does not run has no sockets"
        raise KnetstatdError(f"cannot be read: {e.strerror}", f"/{kind.path}", fix) from e


def text(rows: Sequence[tuple[Kind, Socket]], coloured: bool) -> str:
    """The table."""
    lines = [("FILE", "RECV-Q", "SEND-Q", "LOCAL", "FOREIGN", "STATE", "DIAG", "OPTIONS")]
    lines += [
        (kind.value, str(s.recv_q), str(s.send_q), _address(s.local), _address(s.foreign), s.state, s.diag, _options(s))
        for kind, s in rows
    ]
    return render.table(lines, None, coloured)


def _address(endpoint: Endpoint) -> str:
    address = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{address}:{endpoint.port or '*'}"


def _options(row: Socket) -> str:
    return ",".join(f"{name}={value}{knetstat_proc.UNITS.get(name, '')}" for name, value in row.options.items())


def document(rows: Sequence[tuple[Kind, Socket]]) -> dict[str, Any]:
    """The JSON document, without its schema's number."""
    return {"sockets": list(_json(rows))}


def _json(rows: Sequence[tuple[Kind, Socket]]) -> Iterator[dict[str, Any]]:
    for kind, s in rows:
        yield {
            "file": kind.value,
            "recv_q": s.recv_q,
            "send_q": s.send_q,
            "local": s.local._asdict(),
            "foreign": s.foreign._asdict(),
            "state": s.state,
            "diag": s.diag,
            "options": dict(s.options),
        }
