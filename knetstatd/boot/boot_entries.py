# SPDX-License-Identifier: GPL-2.0-or-later
"""The Boot Loader Specification's entries (UAPI.1) as systemd-boot reads, names, orders and finds them.

Sources, systemd 252 and 257: src/boot/boot.c and efi-string.c (until 253 in src/boot/efi), and
src/fundamental/string-util-fundamental.c.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COUNTER = re.compile(r"(.*)\+([0-9]{1,10})(?:-([0-9]{1,10}))?(\.[^.]*)", re.DOTALL | re.ASCII)


class Entry(NamedTuple):
    """One entry. place: the partition's directory, in which image and initrds are looked for.

    name: its file's.  sort_key: None if it has none.
    """

    name: str
    title: str
    image: str
    place: Path
    version: str = ""
    sort_key: str | None = None
    machine: str = ""
    options: str = ""
    initrds: tuple[str, ...] = ()

    @property
    def counter(self) -> tuple[int, int]:
        """Boot counting's tries that are left and done; -1 without it: boot_entry_parse_tries."""
        match = _COUNTER.fullmatch(self.name)
        if match is None or int(match[2]) >= 1 << 31 or int(match[3] or 0) >= 1 << 31:
            return -1, -1
        return int(match[2]), int(match[3] or 0)

    def id(self, *, keeps_counter: bool) -> str:
        """What patterns are held against. Without the counter it keeps its capital letters, as in systemd 257."""
        match = _COUNTER.fullmatch(self.name)
        return match[1] + match[4] if match and not keeps_counter and self.counter[0] >= 0 else lower(self.name)


def lines(data: bytes, separators: str) -> Iterator[tuple[str, str]]:
    """The keys and values of an entry, of loader.conf, or of an os-release file: efi-string.c, line_get_key_value."""
    for raw in re.split(r"[\n\r]", data.partition(b"\0")[0].decode("utf-8", "replace")):
        line = raw.strip(" \t")
        match = re.match(f"([^{separators}]*)[{separators}]+(.*)", line, re.DOTALL)
        if line.startswith("#") or match is None:
            continue
        key, value = match[1], match[2]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        yield key, value


def lower(text: str) -> str:
    """strtolower16: ASCII alone."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in text)


def compare(a: Entry, b: Entry, *, keeps_counter: bool) -> int:
    """boot_entry_compare: what has no tries left comes last, then by sort key, machine, version, id."""
    (left, left_done), (right, right_done) = a.counter, b.counter
    first = [_order(left == 0, right == 0), _order(a.sort_key is None, b.sort_key is None)]
    if a.sort_key is not None and b.sort_key is not None:
        first += [_order(a.sort_key, b.sort_key), _order(a.machine, b.machine), -compare_versions(a.version, b.version)]
    first.append(-compare_versions(a.id(keeps_counter=keeps_counter), b.id(keeps_counter=keeps_counter)))
    if left >= 0 and right >= 0:
        first += [-_order(left, right), _order(left_done, right_done)]
    return next(filter(None, first), 0)


def _order(a: str | int, b: str | int) -> int:
    return (a > b) - (a < b)  # type: ignore[operator]


def compare_versions(a: str, b: str) -> int:
    """strverscmp_improved: negative where `a` is older."""
    while True:
        a, b = (re.sub(r"^[^0-9A-Za-z~^.-]+", "", text) for text in (a, b))
        if a[:1] == "~" or b[:1] == "~":
            if result := _order(a[:1] != "~", b[:1] != "~"):
                return result
            a, b = a[1:], b[1:]
        if not a or not b:
            return _order(a, b)
        for prefix in "-^.":
            if a[:1] == prefix or b[:1] == prefix:
                if result := _order(a[:1] != prefix, b[:1] != prefix):
                    return result
                a, b = a[1:], b[1:]
        digits = re.match("[0-9]", a) or re.match("[0-9]", b)
        (one, a), (two, b) = (_split(text, "[0-9]*" if digits else "[A-Za-z]*") for text in (a, b))
        if digits:
            result = _order(bool(one), bool(two))
            one, two = one.lstrip("0"), two.lstrip("0")
            result = result or _order(len(one), len(two)) or _order(one, two)
        else:
            shorter = min(len(one), len(two))
            result = _order(one[:shorter], two[:shorter]) or _order(len(one), len(two))
        if result:
            return result


def _split(text: str, pattern: str) -> tuple[str, str]:
    match = re.match(pattern, text)
    end = match.end() if match else 0
    return text[:end], text[end:]


def matches(pattern: str, text: str) -> bool:
    """efi_fnmatch: `*`, `?`, sets without negation, and a backslash before what stands for itself."""
    parsed = _segments(pattern[:1024])
    if parsed is None:
        return False
    first, *rest = parsed
    if not rest:
        return len(first) == len(text) and _fits(first, text, 0)
    if not _fits(first, text, 0):
        return False
    at = len(first)
    for segment in rest[:-1]:
        while not _fits(segment, text, at):
            at += 1
            if at > len(text):
                return False
        at += len(segment)
    return len(text) - len(rest[-1]) >= at and _fits(rest[-1], text, len(text) - len(rest[-1]))


def _fits(segment: list[str | None], text: str, at: int) -> bool:
    return at + len(segment) <= len(text) and all(s is None or text[at + i] in s for i, s in enumerate(segment))


def _segments(pattern: str) -> list[list[str | None]] | None:
    """What stands between the stars: for each character those that fit, None for any. None for a pattern that fits nothing."""
    segments: list[list[str | None]] = [[]]
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "*":
            segments.append([])
        elif char == "?":
            segments[-1].append(None)
        elif char == "[":
            match = re.compile(r"\[((?:\\.|\]|[^\\])(?:\\.|[^\]\\])*)\]", re.DOTALL).match(pattern, at)
            if match is None:
                return None
            segments[-1].append(_set(match[1]))
            at = match.end() - 1
        else:
            at += char == "\\"
            if at == len(pattern):
                return None
            segments[-1].append(pattern[at])
        at += 1
    return segments


def _set(text: str) -> str:
    """The characters of a set. Ranges cannot be chained: a-c-f is a, b, c, - and f."""
    units = re.findall(r"\\?.", text, re.DOTALL)
    chars, i, can_range = "", 0, True
    while i < len(units):
        if units[i] == "-" and can_range and 0 < i < len(units) - 1:
            i += 1
            chars += "".join(map(chr, range(ord(units[i - 2][-1]), min(ord(units[i][-1]), 0x2FFF) + 1)))
            can_range = False
        else:
            chars += units[i][-1]
            can_range = True
        i += 1
    return chars
