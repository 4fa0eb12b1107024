# SPDX-License-Identifier: GPL-2.0-or-later
"""The variables that a shell file assigns, found without running it.

Rule 1: nothing is executed and no file is read. Quotes, arrays, `+=` and variables that were assigned before are
        understood; that is what configuration files in shell are made of.
Rule 2: what needs a shell (substitutions, arithmetic, an assignment in a block or after &&) is never guessed: the
        variable is `dynamic`, and its text stays as it was written. "*" in `dynamic` means every variable.
Rule 3: no text raises, and none grows without limit.

Source: bash(1), "QUOTING", "Arrays", "Parameter Expansion", "SHELL GRAMMAR".
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\[([^\]\s]*)\])?(\+?)=")
_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)(?:\[([0-9]{1,3})\])?\})")
_INDEX = re.compile(r"\[([0-9]{1,3})\]=")
_SPLITS = re.compile(r"[*?\[{~]")
_BRACKETS = re.compile(r"\\.|'[^']*+'|\"(?:\\.|[^\"\\])*+\"|[(){}]", re.DOTALL)
_OPENS = ("if", "for", "while", "until", "case", "select", "{")
_CLOSES = ("fi", "done", "esac", "}")
_RESERVED = (*_OPENS, *_CLOSES, "then", "do", "else", "elif", "!", "time", "coproc", "function")
_SEPARATORS = " \t\n;&|()<>"
_PLAIN = re.compile(r"[^\"\\'$` \t\n;&|()<>]++")
_DECLARES = ("export", "declare", "typeset", "local")
# Commands after which any variable may have any value.
_OPAQUE = (".", "source", "eval", "exec", "exit", "return", "set", "shopt", "trap", "alias", "readonly")
_NAMES_ITS_RESULTS = ("read", "printf", "mapfile", "readarray", "let", "getopts", "unset")
# A command's name that an expansion makes: it may be any command, or none.
_EXPANDS = ("$", "`", '"$', '"`')
# What may follow export and declare without changing what an assignment means.
_DECLARED = re.compile(r"[a-z]+$|-[agx]+$|[A-Za-z_]\w*(?:\[[0-9]+\])?(?:\+?=|$)")
# More than any real value or array has.
_LARGEST = 4096
_MOST = 1000


class Word(NamedTuple):
    """An expanded word: its text, whether that is known without a shell, and the position after it."""

    text: str
    static: bool
    end: int


class Assigned(NamedTuple):
    """What files assign, one after the other; a scalar is an array's element 0. dynamic: those that need a shell."""

    values: Mapping[str, Mapping[int, str]]
    dynamic: Set[str]

    def scalar(self, name: str, default: str = "") -> str:
        """The value of a variable, as far as it is known."""
        return self.values.get(name, {}).get(0, default)


@functools.lru_cache(maxsize=32)
def assigned(texts: tuple[str, ...], given: tuple[tuple[str, str], ...] = (), unset: tuple[str, ...] = ()) -> Assigned:
    """What texts assign. given, unset: see Shell."""
    shell = Shell(dict(given), unset)
    for text in texts:
        shell.run(text)
    return Assigned(shell.values, shell.dynamic)


class Shell:
    """The part of bash that dkms.conf files need: simple commands that assign."""

    def __init__(self, given: Mapping[str, str], unset: Sequence[str] = ()) -> None:
        """given: variables that are set from outside.  unset: ones whose value the caller does not know; they stay
        in the text as `${NAME}`. Every other variable is empty until it is assigned.
        """
        self.given = given
        self.unset = unset
        self.values: dict[str, dict[int, str]] = {}
        self.dynamic: set[str] = set()
        # Of these dynamic ones it is not even known which elements they have: a plain assignment sets only the first.
        self._open: set[str] = set()

    def run(self, text: str) -> None:
        """Takes over what the text assigns; a scalar is an array's element 0."""
        opened: list[str] = []
        words: list[tuple[int, int]] = []
        chained = False
        i = 0
        while i <= len(text):
            c = text[i : i + 1] or "\n"
            if c in " \t":
                i += 1
            elif text.startswith("\\\n", i):
                i += 2
            elif c == "#":
                i = _find(text, "\n", i)
            elif c in "\n;&|()":
                double = c in "&|" and text.startswith(c * 2, i)
                self._command(text, words, opened, chained or (c in "&|" and not double))
                chained = (chained and not words and c == "\n") or c in "&|"
                if c == "(":
                    opened.append("(")
                elif c == ")" and opened and opened[-1] == "(":
                    opened.pop()
                words = []
                i += 1 + double
            elif c in "<>":
                if text.startswith("<<", i):  # a here-document: what follows is not commands
                    self.dynamic.add("*")
                    return
                i += 1
            else:
                end = self._end(text, i)
                words.append((i, end))
                i = end
        if opened:
            self.dynamic.add("*")  # bash reads nothing of a file that ends inside a block

    def _command(self, text: str, words: list[tuple[int, int]], opened: list[str], conditional: bool) -> None:
        """One simple command. Inside a block, or after && or ||, what it assigns is dynamic."""
        conditional = conditional or bool(opened)
        raw = [text[start:end] for start, end in words]
        first = 0
        while first < len(raw) and raw[first] in _RESERVED:
            word = raw[first]
            first += 1
            if word in _OPENS:
                opened.append(word)
                conditional = True
            elif word in _CLOSES and opened:
                opened.pop()
            if word in ("for", "select", "function"):
                self.dynamic.update(raw[first : first + 1])
                first += 1
            elif word == "case":
                first = len(raw)
        raw, words = raw[first:], words[first:]
        matches = [_ASSIGNMENT.match(text, start) for start, _ in words]
        leading = next((n for n, match in enumerate(matches) if not match), len(words))
        command = raw[leading] if leading < len(raw) else ""
        declares = command in _DECLARES
        if command in _OPAQUE or command.startswith(_EXPANDS) or (declares and not all(map(_DECLARED.match, raw[leading:]))):
            self.dynamic.add("*")
        elif command in _NAMES_ITS_RESULTS:
            for word in raw[leading + 1 :]:
                self._unknown(re.findall(r"[A-Za-z_]\w*", word))
        assignments = [match for match in matches if match]
        if conditional:
            self._unknown([match[1] for match in assignments])
        elif declares:
            for match in assignments[leading:]:
                self._assign(text, match)
                # The values are expanded before any is assigned, and so are braces.
                if len(assignments) > leading + 1 or text.startswith("(", match.end()) or "{" in "".join(raw):
                    self._unknown([match[1]])
        elif leading == len(words):
            for match in assignments:
                self._assign(text, match)

    def _unknown(self, variables: Sequence[str]) -> None:
        """Nothing is known of the variables any more, nor how many elements they have."""
        self.dynamic.update(variables)
        self._open.update(variables)

    def _assign(self, text: str, match: re.Match[str]) -> None:
        name, index, append = match[1], match[3], match[4]
        end = match.end()
        array = self.values.setdefault(name, {})
        if text.startswith("(", end):
            items = self._items(text, end + 1)[0]
            if not append:
                array = {}
                self.dynamic.discard(name)
                self._open.discard(name)
            if any(not word.static for _, word in items):
                self._open.add(name)
        elif index is None or re.fullmatch(r"[0-9]{1,3}", index):
            position, word = int(index or 0), self.value(text, end)
            if text.startswith("~", end) or ":~" in text[end : word.end]:
                word = word._replace(static=False)
            items = [(position, word._replace(text=array.get(position, "") + word.text) if append else word)]
            if not append and index is None and name not in self._open and not array.keys() - {0}:
                self.dynamic.discard(name)
        else:
            items = []
            self._unknown([name])
        for wanted, word in items:
            position = max(array, default=-1) + 1 if wanted < 0 else wanted
            if not word.static or len(word.text) > _LARGEST or position >= _MOST:
                self.dynamic.add(name)
            if position >= _MOST:
                break
            array[position] = word.text[:_LARGEST]
        self.values[name] = array

    def _items(self, text: str, i: int) -> tuple[list[tuple[int, Word]], int]:
        """The elements of an array from behind its `(`, with their index or -1 for the next one, and its end."""
        items: list[tuple[int, Word]] = []
        while i < len(text) and text[i] != ")":
            if text[i] == "#":
                i = _find(text, "\n", i)
            elif text[i] in " \t\n;&|<>(":
                i += 1
            else:
                match = _INDEX.match(text, i)
                start = match.end() if match else i
                word = self.value(text, start)
                # Outside quotes an element is split into several, and made into names of files.
                raw = _VARIABLE.sub("$", text[start : word.end])
                if _SPLITS.search(raw) or ("$" in raw and not (raw[0] == raw[-1] == '"' and raw.count('"') == 2)):
                    word = word._replace(static=False)
                items.append((int(match[1]) if match else -1, word))
                i = max(word.end, i + 1)
        if i >= len(text):
            self.dynamic.add("*")  # not closed: bash reads nothing of it
        return items, min(i + 1, len(text))

    def _end(self, text: str, i: int) -> int:
        """Where the word that starts at `i` ends."""
        match = _ASSIGNMENT.match(text, i)
        if match and text.startswith("(", match.end()):
            return self._items(text, match.end() + 1)[1]
        return max(self.value(text, i).end, i + 1)

    def value(self, text: str, i: int) -> Word:
        """The word from `i` to the next unquoted separator, expanded; of an overlong one, the beginning."""
        parts: list[str] = []
        room = _LARGEST
        quoted, static = False, True
        while i < len(text):
            c = text[i]
            part, end = c, i + 1
            if c == '"':
                part, quoted = "", not quoted
            elif c == "\\":
                part, end = text[i + 1 : i + 2], i + 2
                if quoted and part not in ("$", "`", '"', "\\", "\n"):
                    part = c + part
                part = part if part != "\n" else ""
            elif c == "'" and not quoted:
                end = _find(text, "'", i + 1) + 1
                static = static and end <= len(text)
                part = text[i + 1 : end - 1]
            elif c in "$`":
                known, end = self._expansion(text, i, quoted)
                static = static and known is not None
                part = text[i:end] if known is None else known
            elif not quoted and c in _SEPARATORS:
                break
            elif match := _PLAIN.match(text, i):
                part, end = match[0], match.end()
            room -= len(part)
            if room >= 0:
                parts.append(part)
            i = end
        return Word("".join(parts), static and not quoted and room >= 0, min(i, len(text)))

    def _expansion(self, text: str, i: int, quoted: bool) -> tuple[str | None, int]:
        """The value of what starts with `$` or a backquote at `i`, None if it needs a shell, and its end."""
        if match := _VARIABLE.match(text, i):
            name = match[1] or match[2]
            if name in self.dynamic or "*" in self.dynamic:
                return None, match.end()
            if name in self.values:
                return self.values[name].get(int(match[3] or 0), ""), match.end()
            if name in self.given:
                return self.given[name], match.end()
            return f"${{{name}}}" if name in self.unset else "", match.end()
        if text[i] == "`":
            return None, _find(text, "`", i + 1) + 1
        opening = text[i + 1 : i + 2]
        if opening in ("(", "{"):
            return None, _closing(text, i + 1)
        if opening == "'" and not quoted:
            return None, _find(text, "'", i + 2) + 1
        if opening == '"' and not quoted:  # a text to translate
            return None, i + 1
        return (None, i + 2) if opening and opening in "0123456789@*#?$!-[" else ("$", i + 1)


def _find(text: str, what: str, i: int) -> int:
    """Where `what` is next, the end of the text if nowhere."""
    at = text.find(what, i)
    return len(text) if at < 0 else at


def _closing(text: str, i: int) -> int:
    """The position after the bracket that closes the one at `i`; quotes and backslashes hide brackets."""
    opening = text[i]
    depth = 0
    for match in _BRACKETS.finditer(text, i):
        if match[0] == opening:
            depth += 1
        elif match[0] == {"(": ")", "{": "}"}[opening]:
            depth -= 1
            if not depth:
                return match.end()
    return len(text)
