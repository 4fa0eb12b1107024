# SPDX-License-Identifier: GPL-2.0-or-later
"""Colours and widths: on a terminal that wants them, and nowhere else."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import sys
import termios

import pytest

from knetstatd.cli import terminal


def test_a_pipe_gets_neither(capsys: pytest.CaptureFixture[str]) -> None:
    assert not terminal.is_coloured()
    assert terminal.width() == 0


def test_a_closed_output_has_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert not terminal.is_coloured()
    assert terminal.width() == 0


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
)
def test_a_terminal(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 132, 0, 0))
    with os.fdopen(slave, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert terminal.is_coloured() is coloured
        assert terminal.width() == 132
        monkeypatch.undo()
    os.close(master)


def test_a_document_carries_its_schemas_number(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_document({"a": 1})
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "a": 1}
