# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: the words before and after a verb, and the programs that only units run."""

from __future__ import annotations

import pytest

from knetstatd.cli import arguments


@pytest.mark.parametrize(
    "words", [["--root", "/x", "check", "all"], ["check", "--root", "/x", "all"], ["check", "all", "--root=/x"]]
)
def test_a_root_stands_before_or_after_the_verb(words: list[str]) -> None:
    asked = arguments.parse(words)
    assert (asked.verb, asked.root, asked.kernel) == ("check", "/x", "all")


def test_the_last_root_counts_and_none_is_this_machine() -> None:
    assert arguments.parse(["--root", "/x", "check", "--root", "/y"]).root == "/y"
    assert arguments.parse(["check"]).root is None


@pytest.mark.parametrize("program", ["compile", "trial"])
def test_a_units_program_is_no_verb_for_people(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = arguments.parse([program, "6.1:demo"])
    assert (asked.verb, asked.what, asked.root) == (program, "6.1:demo", None)
    with pytest.raises(SystemExit):
        arguments.parse(["frob"])
    assert program not in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["frob"], ["check", "--frob"], ["check", "a", "b"], ["build"], ["--root"]])
def test_a_wrong_command_line_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        arguments.parse(words)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: knetstatctl ")
