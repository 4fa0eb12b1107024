# SPDX-License-Identifier: GPL-2.0-or-later
"""What a long command shows: lines for a file, one line that is rewritten for a terminal, nothing for the daemon."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import sys
import time
from typing import TYPE_CHECKING

from knetstatd.system.progress import Progress

if TYPE_CHECKING:
    import pytest


def test_plain_lines_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=True)
    for phase in ("Compiling", "Compiling", "Publishing"):
        progress.phase(phase)
        progress.tick()
    progress.end()
    assert capsys.readouterr().err == "Compiling ...\nPublishing ...\n"


def test_nothing_for_the_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(shown=False)
    progress.phase("Compiling")
    progress.tick()
    progress.end()
    assert capsys.readouterr() == ("", "")


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *phases: str, ticks: int = 0) -> str:
    """What a terminal gets."""
    primary, secondary = pty.openpty()
    with open(secondary, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        progress = Progress(shown=True)
        for phase in phases:
            progress.phase(phase)
            for _ in range(ticks):
                progress.tick()
        progress.end()
        progress.end()
    said = b""
    with contextlib.suppress(OSError):  # a terminal that nobody has open any more
        while more := os.read(primary, 65536):
            said += more
    os.close(primary)
    return said.decode()


def test_a_terminal_s_line_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    said = on_a_terminal(monkeypatch, "Compiling", "Publishing")
    assert re.fullmatch(
        r"\r\x1b\[KCompiling \.\.\. 0\.\d s\r\x1b\[KCompiling: 0\.\d s\r\n"
        r"(?:\r\x1b\[KPublishing \.\.\. 0\.\d s)?\r\x1b\[KPublishing: 0\.\d s\r\n", said
    )  # fmt: skip


def test_it_is_not_drawn_at_every_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    said = on_a_terminal(monkeypatch, "Compiling", ticks=500)
    assert said.count("Compiling ...") <= 2 + 5 * (time.monotonic() - begin)
