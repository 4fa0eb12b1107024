# SPDX-License-Identifier: GPL-2.0-or-later
"""How the table of verdicts and the list of checks look, with and without a terminal."""

from __future__ import annotations

from knetstatd.cli import render

REASON = "bad.c line 13: too few arguments to function call, and a long story of what was expected there"
ROWS = [("KERNEL", "STATE", ""), ("6.1.0-9", "ready", ""), ("6.1.0-10", "failed", REASON)]


def test_a_table_is_one_line_a_row_where_nobody_says_how_wide_it_may_be() -> None:
    assert render.table(ROWS, None, False).splitlines() == [
        "KERNEL    STATE",
        "6.1.0-9   ready",
        f"6.1.0-10  failed  {REASON}",
    ]


def test_in_a_terminal_what_does_not_fit_goes_below_its_row() -> None:
    assert render.table(ROWS, ["green", "red"], True, 40) == (
        "\x1b[1mKERNEL    STATE\x1b[0m\n"
        "6.1.0-9   \x1b[32mready \x1b[0m\n"
        "6.1.0-10  \x1b[31mfailed\x1b[0m\n"
        "    bad.c line 13: too few arguments to\n"
        "    function call, and a long story of\n"
        "    what was expected there"
    )
    for width in (1, 20, 79, 200):
        lines = render.table(ROWS, None, False, width).splitlines()
        assert all(len(line) <= max(width, 16) for line in lines[3:]), width
