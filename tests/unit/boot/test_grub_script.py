# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's grammar: what parser.y and yylex.l accept, and what they call a syntax error."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot.grub_script import Command, For, Function, If, Part, While, parse
from knetstatd.core.errors import Damaged


def words(text: str) -> list[list[tuple[str, bool, bool]]]:
    (command,) = parse(text)
    assert isinstance(command, Command)
    return [[part[:3] for part in word] for word in command.words]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a'b c'd", [("a", False, False), ("b c", False, True), ("d", False, False)]),
        ("''", [("", False, True)]),
        ("a\\ b", [("a", False, False), (" ", False, True), ("b", False, False)]),
        ('"a b"', [("", False, True), ("a b", False, True)]),
        # yylex.l, DQUOTE: a backslash goes before $, \ and " alone.
        (r'"\$x\\\"\a"', [("", False, True), *((c, False, True) for c in ("$", "x", "\\", '"', "\\", "a"))]),
        ("$x${y}z", [("x", True, False), ("y", True, False), ("z", False, False)]),
        ('"$x"', [("", False, True), ("x", True, True)]),
        ("$1$@$?", [("1", True, False), ("@", True, False), ("?", True, False)]),
        ("a#b", [("a#b", False, False)]),
        ("a\\\nb", [("a", False, False), ("b", False, False)]),
        ('"a\\\nb"', [("", False, True), ("a", False, True), ("b", False, True)]),
        ("'a\nb'", [("a\nb", False, True)]),
    ],
)
def test_words(text: str, parts: list[tuple[str, bool, bool]]) -> None:
    assert words(text) == [parts]


def test_a_translated_string_is_marked() -> None:
    (command,) = parse('echo $"a $b"')
    assert isinstance(command, Command)
    assert command.words[1] == (Part("", False, True, True),)


def test_blanks_comments_and_carriage_returns() -> None:
    # getline.c leaves out carriage returns; main.c leaves out lines that begin with #, also within quotes.
    assert words("a  \t b # c") == words("a b") == words("a \\\n b") == words("a b\r\n")
    assert words("a 'b\n#c\nd'") == words("a 'b\nd'")
    assert parse("\n\n # x\n") == parse("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "a", "a;", "a\n\nb", "a; b\n", "menuentry x { a }", "menuentry x {\n a\n}", "menuentry x { a; }", "a if then { b; c\n}",
        "if a; then b; fi", "if a\nthen\nb\nelif c; then d; else e; fi", "for x in 1 2; do a; done", "for x in; do a; done",
        "while a; do b; done", "until a; do b; done", "function f { a; }", "function f\n\n{\n a\n}", "! a", "a=b", "[ a ]",
        "a ]b",
        "x=\\{",
    ],
)  # fmt: skip
def test_what_grub_accepts(text: str) -> None:
    assert parse(text)


@pytest.mark.parametrize(
    "text",
    [
        # parser.y: a block and each branch hold at least one command.
        "menuentry x { }", "menuentry x {\n}", "if a; then fi", "if a; then b; else fi", "while a; do done", "function f { }",
        # A delimiter before all but a block's brace, and one alone.
        "if a then b; fi", "if a; then b fi", "function f { a }", "a;;b", "a; ;b", ";", "a\n;b",
        # The lexer knows them, the grammar does not.
        "a && b", "a || b", "a | b", "a & b", "a < b", "a > b", "[[ a ]]", "case a", "select a", "then", "fi", "}", "{ a; }",
        "menuentry x\n{ a }", "menuentry x { a } b", "menuentry x { function f { a; } }", "if a; then b", "menuentry x { a",
        "'a", '"a', "a $ b", '"$"', '"$ a"', "a ${", "${a b}", "function 1 { a; }", "for 1 in a; do b; done",
        "for x a; do b; done", "for x in a & do b; done",
        "a\0b",
    ],
)  # fmt: skip
def test_what_grub_calls_a_syntax_error(text: str) -> None:
    with pytest.raises(Damaged):
        parse(text)


def test_the_tree() -> None:
    (found,) = parse("if a; then b; elif c; then d; else e; fi")
    assert isinstance(found, If)
    (inner,) = found.other
    assert isinstance(inner, If)
    assert [len(body) for body in (found.condition, found.then, inner.condition, inner.then, inner.other)] == [1] * 5
    loop, until, function = parse("for x in a 'b c'; do d; done; until a; do b; done; function f { a; b\n}\n")
    assert isinstance(loop, For)
    assert (loop.name, len(loop.words), len(loop.body)) == ("x", 2, 1)
    assert isinstance(until, While)
    assert until.until
    assert isinstance(function, Function)
    assert (function.name, len(function.body)) == ("f", 2)


def test_a_chain_of_elif_is_followed_as_far_as_any_menu_goes() -> None:
    chain = "if a; then b; {} fi\n"
    assert len(parse(chain.format("elif a; then b; " * 40))) == 1
    with pytest.raises(Damaged, match="more than 40 elif"):
        parse(chain.format("elif a; then b; " * 41))


def test_the_line_is_named() -> None:
    with pytest.raises(Damaged, match="in the line 'menuentry x { }'"):
        parse("set a=b\nmenuentry x { }\nset c=d\n")


@pytest.mark.parametrize(
    "text",
    [
        "menuentry x {\n" * 9999, "if a; then\n" * 9999, "'" * 99_999, '"$a' * 49_999, "\\" * 99_999, "a " * 100_000 + "'",
        '"' + "\\a" * 100_000, "'a'" * 100_000 + "'", "if a; then b; " + "elif a; then b; " * 3000 + "fi",
    ],
    ids=range(9),
)  # fmt: skip
def test_hostile_text_ends_quickly(text: str) -> None:
    start = time.process_time()
    with pytest.raises(Damaged):
        parse(text)
    assert time.process_time() - start < 5


@given(st.text(alphabet=" \n;{}'\"\\$#ab1if[]<>&|=", max_size=60))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        parse(text)
    except Damaged as error:
        assert "\n" not in str(error)
