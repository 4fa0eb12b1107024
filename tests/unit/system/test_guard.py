# SPDX-License-Identifier: GPL-2.0-or-later
"""The outermost door: what the machine denies is one line and a status."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from knetstatd.core.exits import Exit
from knetstatd.system import guard


def test_the_guard_ends_with_the_status_for_unknown() -> None:
    assert guard._UNKNOWN == Exit.UNKNOWN


def ends(error: BaseException) -> int:
    """How a program ends whose work raises `error`."""

    def work() -> int:
        raise error

    return guard.guarded("prog", work)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MemoryError(), 3, "prog: there is not enough memory. Free some, or raise its limit (ulimit -v, MemoryMax=).\n"),
        (ImportError("libx.so: cannot map"), 3, "prog: it cannot load its own code: libx.so: cannot map. Free memory, or rein"),
        (SystemError("error return without exception set"), 3, "prog: it cannot load its own code: error return without ex"),
        (SyntaxError("expected ':'"), 3, "prog: it cannot load its own code: expected ':'. Free memory, or reinstall the pac"),
        (OSError(28, "No space left on device"), 3, "prog: its output cannot be written: No space left on device.\n"),
        (PermissionError(13, "Permission denied", "/etc/x"), 3, "prog: /etc/x: Permission denied.\n"),
        (PermissionError(13, "Permission denied", b"/etc/x"), 3, "prog: /etc/x: Permission denied.\n"),
        (OSError("two\nlines"), 3, "prog: its output cannot be written: two lines.\n"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("words"), 1, ""),
    ],
)
def test_what_the_machine_denies(capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str) -> None:
    assert ends(error) == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(said)
    assert written.err.count("\n") == bool(said)


def test_a_programming_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_its_work_decides_how_it_ends() -> None:
    assert [guard.guarded("prog", partial(int, code)) for code in (0, 1, 75)] == [0, 1, 75]


def test_an_output_that_is_full_is_met_before_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was printed is still in memory when the work is over; nothing is left to fail after that."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert guard.guarded("prog", lambda: full.write("x") - 1) == Exit.UNKNOWN
    assert capsys.readouterr().err == "prog: its output cannot be written: No space left on device.\n"
