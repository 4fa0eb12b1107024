# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON of our own, read back: each value through a getter that checks its type, and names its place in the document.

Rule 1: a power cut, a full disk or an administrator may have done anything to such a file, and a unit without privileges may
        have written it. What is not exactly a document as we write it is Malformed; nothing else is raised.
Rule 2: `read` answers None for a file that is Malformed, not there, or no regular file: losing one of our files is allowed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from knetstatd import __version__
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Sequence
    from types import ModuleType

    T = TypeVar("T")
    Word = TypeVar("Word", bound=enum.StrEnum)

LIMIT = 1 << 20  # bytes; our largest file, the answer to a rehearsal, has some 10 KB
_DIGITS = 19  # of the largest integer that any of our values can be: nanoseconds, inodes, sizes
_INTEGERS = 1 << 64


class Malformed(KnetstatdError):
    """A document is not what it must be. where: the value's place in it, like `answer.words[2]`; "" for the whole."""


class Node:
    """A value in a document. where: its place, "" for the document itself. Every getter raises Malformed."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str = "") -> None:
        self.value = value
        self.where = where

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, dict) and key in self.value

    def get(self, key: str) -> Node:
        """The value of a key of this object."""
        where = f"{self.where}.{key}" if self.where else key
        if not isinstance(self.value, dict):
            raise Malformed("it must be an object", self.where)
        if key not in self.value:
            raise Malformed("it is missing", where)
        return Node(self.value[key], where)

    def keys(self) -> list[str]:
        """The keys of this object."""
        if not isinstance(self.value, dict):
            raise Malformed("it must be an object", self.where)
        return [Node(key, self.where).as_text() for key in self.value]

    def items(self, key: str) -> list[Node]:
        """The elements of an array."""
        node = self.get(key)
        if not isinstance(node.value, list):
            raise Malformed("it must be an array", node.where)
        return [Node(value, f"{node.where}[{number}]") for number, value in enumerate(node.value)]

    def as_text(self) -> str:
        """This value, a string that can be printed: no half of a surrogate pair."""
        if not isinstance(self.value, str):
            raise Malformed("it must be a string", self.where)
        if not self.value.isascii():
            try:
                self.value.encode()
            except UnicodeEncodeError as e:
                raise Malformed("it is no Unicode text", self.where) from e
        return self.value

    def as_path(self) -> Path:
        """This value, an absolute path; of any bytes that a file's name may have (os.fsencode)."""
        if not isinstance(self.value, str) or not self.value.startswith("/") or "\0" in self.value:
            raise Malformed("it must be an absolute path", self.where)
        try:
            os.fsencode(self.value)
        except UnicodeEncodeError as e:
            raise Malformed("it is no path", self.where) from e
        return Path(self.value)

    def text(self, key: str) -> str:
        """A string."""
        return self.get(key).as_text()

    def path(self, key: str) -> Path:
        """An absolute path."""
        return self.get(key).as_path()

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(node.as_text() for node in self.items(key))

    def table(self, key: str) -> dict[str, str]:
        """An object of strings."""
        node = self.get(key)
        return {name: node.text(name) for name in node.keys()}

    def word(self, key: str, words: type[Word]) -> Word:
        """A member of an enumeration, by its value."""
        text = self.text(key)
        try:
            return words(text)
        except ValueError as e:
            raise Malformed(f"it must be a {words.__name__}", self.get(key).where) from e

    def as_flag(self) -> bool:
        """This value, true or false."""
        if not isinstance(self.value, bool):
            raise Malformed("it must be true or false", self.where)
        return self.value

    def flag(self, key: str) -> bool:
        """True or false."""
        return self.get(key).as_flag()

    def as_integer(self) -> int:
        """This value, an integer of at most 64 bits."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not -_INTEGERS < self.value < _INTEGERS:
            raise Malformed("it must be an integer", self.where)
        return self.value

    def integer(self, key: str) -> int:
        """An integer of at most 64 bits."""
        return self.get(key).as_integer()

    def number(self, key: str) -> float:
        """A finite number."""
        node = self.get(key)
        if isinstance(node.value, bool) or not isinstance(node.value, int | float) or not math.isfinite(node.value):
            raise Malformed("it must be a number", node.where)
        return float(node.value)


def parse(data: bytes) -> Node:
    """A document, an object, from its bytes. Raises Malformed."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_refuse, parse_int=_integer)
    except Malformed:
        raise
    except RecursionError as e:
        raise Malformed("it is nested too deeply") from e
    except ValueError as e:  # also UnicodeDecodeError
        raise Malformed(f"it is no JSON: {e}") from e
    if not isinstance(value, dict):
        raise Malformed("it must be an object")
    return Node(value)


def read(path: Path, limit: int = LIMIT) -> Node | None:
    """The document in a file of ours, None if there is none that is well-formed (Rule 2). limit: bytes."""
    try:
        return parse(files.untrusted(path, limit))
    except (OSError, KnetstatdError):
        return None


class Readings:
    """What was read of files that take long to read, a document for each: it stands while the file, and our code, is the same.

    limit: bytes of a document.  code: the modules that do the reading.
    """

    def __init__(self, limit: int, *code: ModuleType) -> None:
        self._limit = limit
        # As it was when this process took it into its memory: an upgrade replaces the files, and the old code still runs.
        self._code = [__version__, *([*(files.identity(Path(str(one.__file__))) or ())] for one in code)]

    def _place(self, directory: Path, path: Path) -> Path:
        return directory / f"{path.name[:100]}-{zlib.crc32(os.fsencode(path)):08x}.json"

    def _mark(self, identity: files.Identity) -> list[Any]:
        return [[*identity], *self._code]

    def save(self, kept: Sequence[Path], path: Path, identity: files.Identity, document: dict[str, Any]) -> None:
        """Keeps what was read of a file, as well as it can. kept: our directories; the last is this process's own."""
        with contextlib.suppress(OSError):
            for directory in kept[-1:]:
                directory.mkdir(parents=True, exist_ok=True)
                document = {"mark": self._mark(identity), **document}
                files.write_json(self._place(directory, path), document, durable=False)

    def load(self, kept: Sequence[Path], path: Path, identity: files.Identity, take: Callable[[Node], T]) -> T | None:
        """What `take` makes of what was kept, by root or by this user; None if there is nothing that stands.

        take: may raise Malformed and ValueError.
        """
        for directory in kept:
            for owner in dict.fromkeys((0, os.geteuid())):
                with contextlib.suppress(OSError, KnetstatdError, ValueError):
                    document = parse(files.untrusted(self._place(directory, path), self._limit, owner=owner))
                    if document.get("mark").value == self._mark(identity):
                        return take(document)
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise Malformed("an object has a key twice")
    return made


def _refuse(constant: str) -> float:
    raise Malformed(f"it has {constant}")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS + 2:  # a sign, and one to spare
        raise Malformed("it has an integer of too many digits")
    return int(digits)
