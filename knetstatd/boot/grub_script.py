# SPDX-License-Identifier: GPL-2.0-or-later
"""GRUB's scripting language: the text of grub.cfg as a tree of commands.

Rule 1: the grammar is GRUB's, no wider: what GRUB calls a syntax error is Damaged here.
Rule 2: nothing is executed or expanded; that is grub_cfg's.

Sources: GRUB 2.06 and 2.12, grub-core/script/yylex.l (words), parser.y (grammar), grub-core/normal/main.c
read_config_file_getline (comments) and grub-core/lib/getline.c grub_getline (carriage returns).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import Damaged

if TYPE_CHECKING:
    from typing import TypeAlias

# yylex.l. No pattern repeats a group: hostile bytes cannot make one backtrack, nor remember each turn.
_VARIABLE = r"\$(?:([A-Za-z_]\w*|[0-9]+|[?#*@])|\{([A-Za-z_]\w*|[0-9]+|[?#*@])\})"
_BETWEEN = re.compile(r"[ \t]+|\\\n|#[^\n]*")
_SYMBOL = re.compile(r"\n|\|\||&&|;;|[|&;<>{}]")
_PIECE = re.compile(rf"""\\(.)|'([^']*)'|({_VARIABLE})|(\$?")|([^{{}}|&$;<> \t\n'"\\]+)""", re.DOTALL | re.ASCII)
_ESCAPED, _A_VARIABLE, _A_QUOTE, _BARE = 1, 3, 6, 7  # groups of _PIECE
_QUOTED = re.compile(rf"""\\([$\\"\n])|({_VARIABLE})|([^$\\"]+|\\)|(")""", re.ASCII)
_TRANSLATED = re.compile(r"""[^"\\]+|\\.|(")""", re.DOTALL)
_RESERVED = frozenset(
    "case do done elif else esac fi for if in select then until while function".split()  # parser.y, `argument`
)
# Deeper than any real menu. GRUB 2.06 with Debian's patches runs 64 levels of its own: execute.c, MAX_RECURSION_DEPTH.
_DEEPEST = 20
_MOST_ELIF = 40  # grub_run follows no more


class Part(NamedTuple):
    """A piece of a word: literal text, or a variable's name. What is quoted is neither split nor a pattern.

    translated: stands for a $"…", which GRUB replaces by its translation.
    """

    text: str
    variable: bool
    quoted: bool
    translated: bool = False


Word: TypeAlias = "tuple[Part, ...]"


class Command(NamedTuple):
    """A command with its words; `block` is what stands between its braces, None if it has none."""

    words: tuple[Word, ...]
    block: Body | None


class If(NamedTuple):
    """An `if`; an `elif` is an If in `other`."""

    condition: Body
    then: Body
    other: Body


class For(NamedTuple):
    """A `for`: the body once for each word."""

    name: str
    words: tuple[Word, ...]
    body: Body


class While(NamedTuple):
    """A `while`, or an `until`."""

    condition: Body
    body: Body
    until: bool


class Function(NamedTuple):
    """A function's definition."""

    name: str
    body: Body


Statement: TypeAlias = "Command | If | For | While | Function"
Body: TypeAlias = "tuple[Statement, ...]"


def parse(text: str) -> Body:
    """The statements of a script. Raises Damaged for what GRUB calls a syntax error, and for bytes that no script has."""
    if "\0" in text:
        raise Damaged("holds a NUL byte, which no script does")
    text = re.sub(r"^#.*\n?", "", text.replace("\r", ""), flags=re.MULTILINE)
    return _Parser(text).script()


class _Parser:
    """parser.y as recursive descent. A token is (kind, text); kind is newline, word, or the symbol itself; "" is the end."""

    def __init__(self, text: str) -> None:
        self._text = text if text.endswith("\n") else text + "\n"
        self._at = 0
        self._depth = 0
        self._kind = self._value = ""
        self._parts: list[Part] = []
        self._next()

    def _next(self) -> str:
        """Goes one token on; returns the text of the one that is left."""
        old, self._kind, self._value, self._parts = self._value, "", "", []
        while between := _BETWEEN.match(self._text, self._at):
            self._at = between.end()
        start = self._at
        if start == len(self._text):
            return old
        if symbol := _SYMBOL.match(self._text, start):
            self._at = symbol.end()
            self._kind = "newline" if symbol[0] == "\n" else symbol[0]
        else:
            self._word()
            self._kind = "word"
        self._value = self._text[start : self._at]
        return old

    def _word(self) -> None:
        """A word's parts: yylex.l, its state SPLIT."""
        start = self._at
        while piece := _PIECE.match(self._text, self._at):
            self._at = piece.end()
            kind, text = piece.lastindex, piece[piece.lastindex or 0]
            if kind == _A_VARIABLE:
                self._parts.append(Part(piece[4] or piece[5], True, False))
            elif kind == _A_QUOTE:
                self._double(text != '"')
            elif kind != _ESCAPED or text != "\n":
                self._parts.append(Part(text, False, kind != _BARE))
        if self._at == start:
            raise self._error()

    def _double(self, translated: bool) -> None:
        """The parts up to a closing quote: yylex.l, DQUOTE. A backslash stays before all but `$`, `\\`, `"` and a new line."""
        self._parts.append(Part("", False, True, translated))
        while piece := (_TRANSLATED if translated else _QUOTED).match(self._text, self._at):
            self._at = piece.end()
            if piece[piece.lastindex or 0] == '"' and piece[0] == '"':
                return
            if translated:
                continue
            escaped, variable, bare, braced, text, _ = piece.groups()
            if variable:
                self._parts.append(Part(bare or braced, True, True))
            elif escaped != "\n":
                self._parts.append(Part(escaped or text, False, True))
        raise self._error()  # it does not close, or a $ that no name follows

    def _error(self) -> Damaged:
        start = self._text.rfind("\n", 0, max(self._at - 1, 0)) + 1
        line = self._text[start : self._text.find("\n", self._at)]
        return Damaged(f"GRUB finds a syntax error in it, in the line {names.show(line.strip(), 60)}")

    def _take(self, *wanted: str) -> str:
        """The token, if it is one of those that may stand here: a symbol, a reserved word, or newline."""
        if self._kind not in wanted and not (self._kind == "word" and self._value in wanted):
            raise self._error()
        return self._next()

    def _newlines(self) -> None:
        while self._kind == "newline":
            self._next()

    def _delimiter(self) -> bool:
        """A `;` or the end of a line, and all empty lines after it; False if there is none."""
        if self._kind not in (";", "newline"):
            return False
        self._next()
        self._newlines()
        return True

    def script(self) -> Body:
        """All of it: statements, each with a delimiter."""
        statements: list[Statement] = []
        self._newlines()
        while self._kind:
            statements.append(self._function() if self._value == "function" else self._command())
            if not self._delimiter():
                raise self._error()
        return tuple(statements)

    def _commands(self, *ends: str, delimited: bool = True) -> Body:
        """One command or more, up to one of `ends`, before which a delimiter must stand if it is `delimited`."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise Damaged(f"is nested more than {_DEEPEST} levels deep")
        statements: list[Statement] = []
        self._newlines()
        while True:
            statements.append(self._command())
            closed = self._delimiter()
            if self._value in ends and (closed or not delimited):
                self._depth -= 1
                return tuple(statements)
            if not closed:
                raise self._error()

    def _command(self) -> Statement:
        if self._kind != "word":
            raise self._error()
        match self._value:
            case "if":
                return self._if()
            case "for":
                self._next()
                name = self._name()
                self._take("in")
                words = self._arguments()
                if not self._delimiter():
                    raise self._error()
                return For(name, words, self._loop())
            case "while" | "until":
                until = self._next() == "until"
                condition = self._commands("do")
                return While(condition, self._loop(), until)
            case word if word in _RESERVED or word in ("[[", "]]"):
                raise self._error()
        words = self._arguments()
        return Command(words, self._block() if self._kind == "{" else None)

    def _if(self, elifs: int = 0) -> If:
        if elifs > _MOST_ELIF:
            raise Damaged(f"has more than {_MOST_ELIF} elif in a row")
        self._next()
        condition = self._commands("then")
        self._take("then")
        then = self._commands("elif", "else", "fi")
        if self._value == "elif":
            return If(condition, then, (self._if(elifs + 1),))
        other: Body = ()
        if self._take("else", "fi") == "else":
            other = self._commands("fi")
            self._take("fi")
        return If(condition, then, other)

    def _loop(self) -> Body:
        self._take("do")
        body = self._commands("done")
        self._take("done")
        return body

    def _block(self, *, delimited: bool = False) -> Body:
        self._take("{")
        body = self._commands("}", delimited=delimited)
        self._take("}")
        return body

    def _function(self) -> Function:
        self._next()
        name = self._name()
        self._newlines()
        return Function(name, self._block(delimited=True))

    def _name(self) -> str:
        if self._kind != "word" or not re.fullmatch(r"[A-Za-z_]\w*", self._value, re.ASCII) or self._value in _RESERVED:
            raise self._error()
        return self._next()

    def _arguments(self) -> tuple[Word, ...]:
        words = []
        while self._kind == "word":
            words.append(tuple(self._parts))
            self._next()
        return tuple(words)
