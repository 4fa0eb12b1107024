# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers, paths through submenus, the environment block, `[ … ]`, and what is so after two branches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot.grub_state import UNKNOWN, MenuEntry, Start, State, component, environment, number, test

HEAD = b"# GRUB Environment Block\n"
truth = test  # pytest takes a function named `test` for a test of this module
del test


@pytest.mark.parametrize(
    ("text", "value", "rest"),
    [
        # misc.c, grub_strtoull: blanks first, then as many digits as there are.
        ("2", 2, ""), (" \t\r\n2", 2, ""), ("1> 2", 1, "> 2"), ("2. kernel", 2, ". kernel"), ("6.1 LTS", 6, ".1 LTS"),
        # The base: 0x is 16, 0 and an octal digit is 8.
        ("0x2", 2, ""), ("0x1F", 31, ""), ("0x1g", 1, "g"), ("010", 8, ""), ("018", 1, "8"), ("08", 8, ""), ("0", 0, ""),
        ("0X2", 0, "X2"),
        # Not a number: GRUB_ERR_BAD_NUMBER.
        ("", None, ""), ("0x", None, "0x"), ("0xg", None, "0xg"), ("-1", None, "-1"), ("+1", None, "+1"), ("\v1", None, "\v1"),
        ("a1", None, "a1"), ("\N{ARABIC-INDIC DIGIT ONE}", None, "\N{ARABIC-INDIC DIGIT ONE}"),
        ("18446744073709551617", 18446744073709551617, ""),
    ],
)  # fmt: skip
def test_a_number(text: str, value: int | None, rest: str) -> None:
    assert number(text) == (value, rest)


@pytest.mark.parametrize(
    ("path", "first", "rest"),
    [
        # menu.c, menuentry_eq and grub_menu_execute_entry: blanks count, a doubled > stands for one.
        ("a", "a", ""), ("a>b>c", "a", "b>c"), ("a > b", "a ", " b"), ("a >> b", "a > b", ""), ("a>>>b", "a>", "b"), (">b",
        "", "b"),
        ("a>", "a", ""), ("", "", ""), (">>", ">", ""), ("a\n>b", "a\n", "b"),
    ],
)  # fmt: skip
def test_a_path_through_submenus(path: str, first: str, rest: str) -> None:
    assert component(path) == (first, rest)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", {}), (HEAD, {}), (HEAD[:-1], {}), (bytes(1024), {}), (b"a=b\n" + HEAD, {}),
        (HEAD.replace(b"G", b"g", 1) + b"a=b\n", {}),
        (HEAD + b"a=b\n####", {"a": "b"}), (HEAD + b"a=b\nc=d", {"a": "b"}), (HEAD + b"a=\n", {"a": ""}),
        (HEAD + b"a=b\na=c\n", {"a": "c"}), (HEAD + b"#a=b\nc=d\n", {"c": "d"}), (HEAD + b"a=1=2\n", {"a": "1=2"}),
        # envblk.c, grub_envblk_iterate: a name goes up to the =, whatever is before it.
        (HEAD + b"junk\na=b\n", {"junk\na": "b"}), (HEAD + b"a=b\\\nc\\\\\nd=e\n", {"a": "b\nc\\", "d": "e"}),
        (HEAD + b"a=b\\", {}),
        (HEAD + b"a=b\r\n", {"a": "b\r"}), (HEAD + b"a=\xff\n", {"a": "\udcff"}), (HEAD + b"a=b\0c\n", {"a": "b"}),
    ],
)  # fmt: skip
def test_the_environment_block(data: bytes, found: dict[str, str]) -> None:
    assert environment(data) == found


@given(st.binary(max_size=200))
def test_no_block_raises(data: bytes) -> None:
    assert "" not in environment(HEAD + data) or b"=" in data


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("", True), ("a", True), ("-n a", True), ("-z a", False), ("! a", False), ("! ! a", True), ("a = a", True),
        ("a == b", False),
        ("a != b", True), ("a < b", True), ("b <= a", False), ("b > a", True), ("a >= a", True), ("1 -eq 0x1", True),
        ("-2 -lt 1", True),
        ("10 -gt 9", True), ("2 -le 1", False), ("1 -ne 1", False), ("1 -ge 1", True), ("a = b -o c", True), ("a = b -o", True),
        ("a -a b = c", False), ("( a )", True), ("( a = b ) -o ( c )", True), ("! ( a )", False), ("-f /here", True),
        ("-s /here", True), ("-f /gone", False), ("-e ?", None), ("-d /here", True), ("a -nt b", None), ("v-2 -plt v-10", None),
        ("a = ?", None), ("-n ?", None), ("?", None), ("! ?", None), ("? -o a", True), ("? -a a = b", False), ("? -a a", None),
        ("= = =", True), ("-z", True),
    ],
)  # fmt: skip
def test_expressions(expression: str, value: bool | None) -> None:
    found = [UNKNOWN if word == "?" else word for word in expression.split()]
    for words in ([*found, "]"], found):
        assert truth(words, lambda _, path: None if path == UNKNOWN else path == "/here") is value


def test_an_empty_word_is_false() -> None:
    assert truth([""], lambda *_: None) is False
    assert truth(["-z", ""], lambda *_: None) is True
    assert truth(["(" for _ in range(5000)], lambda *_: None) is None


def state(menu: str, **env: str) -> State:
    made = State(env, set(), {})
    made.menu = [MenuEntry(title, title, ()) for title in menu]
    return made


def test_after_either_branch() -> None:
    one, other = state("abc", same="1", differs="1", gone="1"), state("axcd", same="1", differs="2")
    one.start, other.start = Start("/a"), Start("/b")
    one.merge(other)
    assert one.env == {"same": "1", "differs": UNKNOWN, "gone": UNKNOWN}
    assert [(entry.title, entry.maybe) for entry in one.menu] == [("a", False), *((title, True) for title in "bcxcd")]
    assert one.start.image == UNKNOWN
    same = state("ab", x="1")
    same.merge(state("ab", x="1"))
    assert ([entry.maybe for entry in same.menu], same.env, same.start) == ([False, False], {"x": "1"}, Start())
