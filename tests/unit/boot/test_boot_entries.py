# SPDX-License-Identifier: GPL-2.0-or-later
"""systemd-boot's names, patterns and order. What real ones start is asked in tests/vm/test_bootloaders.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot.boot_entries import Entry, compare, compare_versions, lines, matches

PLACE = Path("/efi")


@pytest.mark.parametrize(
    ("pattern", "text", "fits"),
    [
        # efi-string.c, efi_fnmatch: the whole id, its suffix too.
        ("a.conf", "a.conf", True), ("a", "a.conf", False), ("a*", "a.conf", True), ("*.conf", "a.conf", True), ("*", "", True),
        ("", "", True), ("", "a", False), ("a?c", "abc", True), ("a?", "a", False), ("*b*d*", "abcd", True), ("*b*b",
        "ab", False),
        ("a*a", "a", False), ("a*a", "aa", True), ("*ab", "aab", True), ("\\*", "*", True), ("\\*", "a", False), ("a\\",
        "a\\", False),
        ("[abc]", "b", True), ("[abc]", "d", False), ("[a-c]x", "bx", True), ("[!a]", "!", True), ("[!a]", "b", False),
        ("[]a]", "]", True),
        ("[a", "a", False), ("[a-]", "-", True), ("[-a]", "-", True), ("[\\]]", "]", True), ("[a-c-f]", "e", False),
        ("[a-c-f]", "f", True),
        ("*d*c", "abc", False), ("*bb*d", "abcd", False),
        ("*[0-9]-x", "12-x", True), ("[]", "]", False), ("a[", "a[", False),
    ],
)  # fmt: skip
def test_patterns(pattern: str, text: str, fits: bool) -> None:
    assert matches(pattern, text) is fits


def test_a_hostile_pattern() -> None:
    start = time.process_time()
    assert not matches("*a" * 500 + "b", "a" * 5000)
    assert not matches("[" * 1000, "a")
    assert time.process_time() - start < 5


# string-util-fundamental.c, strverscmp_improved: oldest first, as its comment has them.
VERSIONS = [
    "122.1",
    "123~rc1-1",
    "123",
    "123-a",
    "123-a.1",
    "123-1",
    "123-1.1",
    "123^post1",
    "123.a-1",
    "123.1-1",
    "123a-1",
    "124-1",
]


@pytest.mark.parametrize("i", range(len(VERSIONS)))
def test_versions(i: int) -> None:
    for j, other in enumerate(VERSIONS):
        assert compare_versions(VERSIONS[i], other) == (i > j) - (i < j), other


@pytest.mark.parametrize(
    ("a", "b", "order"),
    [("1_2", "12", -1), ("a_b", "ab", -1), ("007", "7", 0), ("1.0", "1.00", 0), ("a", "", 1), ("", "", 0), ("6.1.0-9",
    "6.1.0-57", -1),
     ("9" * 9999, "1" + "0" * 9999, -1), ("a+b", "a b", 0), ("~", "", -1), ("A", "a", -1), ("6.12", "6.1", 1)],
)  # fmt: skip
def test_odd_versions(a: str, b: str, order: int) -> None:
    assert (compare_versions(a, b), compare_versions(b, a)) == (order, -order)


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_versions_have_an_order(a: str, b: str) -> None:
    assert compare_versions(a, b) == -compare_versions(b, a)
    assert compare_versions(a, a) == 0


@pytest.mark.parametrize(
    ("name", "counter", "kept", "dropped"),
    [
        # boot_entry_parse_tries; 257 takes the suffix off the id, and leaves its capital letters then.
        ("a+3.conf", (3, 0), "a+3.conf", "a.conf"), ("A+2-1.conf", (2, 1), "a+2-1.conf", "A.conf"),
        ("a+0-3.efi", (0, 3), "a+0-3.efi", "a.efi"),
        ("a.conf", (-1, -1), "a.conf", "a.conf"), ("A+x.conf", (-1, -1), "a+x.conf", "a+x.conf"),
        ("a+b+1.conf", (1, 0), "a+b+1.conf", "a+b.conf"),
        ("6+deb12.conf", (-1, -1), "6+deb12.conf", "6+deb12.conf"), ("a+1.2.conf", (-1, -1), "a+1.2.conf", "a+1.2.conf"),
        ("a+3-.conf", (-1, -1), "a+3-.conf", "a+3-.conf"), ("a+2147483648.conf", (-1, -1), "a+2147483648.conf",
        "a+2147483648.conf"),
        ("a+9999999999999999999999.conf", (-1, -1), "a+9999999999999999999999.conf", "a+9999999999999999999999.conf"),
    ],
)  # fmt: skip
def test_boot_counting(name: str, counter: tuple[int, int], kept: str, dropped: str) -> None:
    entry = Entry(name, "", "", PLACE)
    assert (entry.counter, entry.id(keeps_counter=True), entry.id(keeps_counter=False)) == (counter, kept, dropped)


def entry(name: str, sort_key: str | None = None, version: str = "", machine: str = "") -> Entry:
    return Entry(name + ".conf", "", "", PLACE, version, sort_key, machine)


# boot_entry_compare: first what is started first.
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (entry("a"), entry("z+0")), (entry("a+0", "k"), entry("z+0")), (entry("a", "k"), entry("z")), (entry("a",
        ""), entry("z")),
        (entry("a", "a"), entry("z", "b")), (entry("a", "B"), entry("z", "a")), (entry("a", "k", "1", "1"), entry("z", "k",
        "9", "2")),
        (entry("a", "k", "6.12"), entry("z", "k", "6.1")), (entry("z", "k", "1"), entry("a", "k", "1")),
        (entry("m-6.12"), entry("m-6.1")),
    ],
)  # fmt: skip
def test_order(first: Entry, second: Entry) -> None:
    for keeps_counter in (True, False):
        assert compare(first, second, keeps_counter=keeps_counter) < 0
        assert compare(second, first, keeps_counter=keeps_counter) > 0
        assert compare(first, first, keeps_counter=keeps_counter) == 0


def test_more_tries_left_come_first_where_all_else_is_the_same() -> None:
    assert compare(entry("a+2"), entry("a+1"), keeps_counter=False) < 0
    assert compare(entry("a+2-1"), entry("a+2-0"), keeps_counter=False) > 0


def test_lines() -> None:
    # efi-string.c, line_get_key_value.
    text = b"# c\n\n title \t Debian 12 \nsort-key\tx\rempty\nq 'a b'\nhalf \"a\n  #x y\nlast z\0 w v\n"
    assert list(lines(text, " \t")) == [("title", "Debian 12"), ("sort-key", "x"), ("q", "a b"), ("half", '"a'), ("last", "z")]
    assert list(lines(b'ID=debian\nNAME="A B"\n==x\n', "=")) == [("ID", "debian"), ("NAME", "A B"), ("", "x")]
