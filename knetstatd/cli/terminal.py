# SPDX-License-Identifier: GPL-2.0-or-later
"""Where knetstatctl writes: a terminal, a pipe or a file; with or without colours."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from knetstatd.verdict import judge


def is_coloured() -> bool:
    """Whether standard output is a terminal that wants colours (no-color.org)."""
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """The terminal's columns; 0 if standard output is something else."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 0


def show_document(document: dict[str, Any]) -> None:
    """Prints a JSON document under our schema's number."""
    print(json.dumps({"schema": judge.SCHEMA, **document}, indent=2))


def warn(text: str) -> None:
    """Prints a line for a person, beside the output."""
    print(text, file=sys.stderr)
