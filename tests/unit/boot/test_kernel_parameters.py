# SPDX-License-Identifier: GPL-2.0-or-later
"""The words of kernel command lines."""

from __future__ import annotations

import pytest

from knetstatd.boot import kernel_parameters


@pytest.mark.parametrize(("line", "words"), [
    ('module-blacklist="demo,a" ro', ["module_blacklist=demo,a", "ro"]),
    ('"module_blacklist=demo" "a b" c', ["module_blacklist=demo", "a b", "c"]),
    ('dyndbg="file a-b.c +p; module_blacklist=demo" x', ["dyndbg=file a-b.c +p; module_blacklist=demo", "x"]),
    ('x="a b', ["x=a b"]), ('a"b c"d e', ['a"b c"d', "e"]), ("", []), (" \t\n", []), ('"', [""]), ("a--b=c-d", ["a__b=c-d"]),
    ("a-b -- c-d", ["a_b", "--", "c_d"]),
])  # fmt: skip
def test_the_words_of_a_command_line(line: str, words: list[str]) -> None:
    assert kernel_parameters.parameters(line) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [("a-b -- c", ["a_b"]), ('a "--" c', ["a"]), ("a --=x c", ["a", "--=x", "c"]), ("__ c", ["__", "c"]), ("-- a", [])],
)
def test_what_comes_after_two_dashes_is_not_the_kernels(line: str, words: list[str]) -> None:
    assert kernel_parameters.own_parameters(line) == words


def test_lists() -> None:
    words = ["a=x,y", "ab=z", "a=", "a=x-z,", "a"]
    assert kernel_parameters.listed(words, "a") == ["x", "y", "x-z"]
