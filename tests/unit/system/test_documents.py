# SPDX-License-Identifier: GPL-2.0-or-later
"""JSON of our own, read back: what is not exactly as it was written is Malformed, never another error."""

from __future__ import annotations

import enum
import json
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.system import documents, files
from knetstatd.system.documents import Malformed, Node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Colour(enum.StrEnum):
    RED = "red"


GETTERS: dict[str, Callable[[Node, str], object]] = {
    "text": Node.text,
    "path": Node.path,
    "texts": Node.texts,
    "table": Node.table,
    "word": lambda node, key: node.word(key, Colour),
    "flag": Node.flag,
    "integer": Node.integer,
    "number": Node.number,
}
GOOD: dict[str, list[Any]] = {
    "text": ["", "grün", "\0", "\x1b"],
    "path": ["/", "/a b", "/\udcff"],
    "texts": [[], ["a", "b"]],
    "table": [{}, {"a": "b"}],
    "word": ["red"],
    "flag": [True, False],
    "integer": [0, -1, 2**63],
    "number": [0, 1.5, -2],
}
BAD: dict[str, list[Any]] = {
    "text": [None, 1, True, ["a"], {"a": "b"}, "\ud800", "a\udcff"],
    "path": [None, "", "a", "./a", "/a\0b", "/\ud800", 5, ["/"]],
    "texts": [None, "ab", ["a", 1], ["a", "\ud800"], {"a": 1}, [["a"]]],
    "table": [None, [], "a", {"a": 1}, {"\ud800": "a"}],
    "word": ["blue", "", "RED", None, ["red"], 1],
    "flag": [0, 1, "true", None, []],
    "integer": [1.0, 1.5, True, "1", None, 2**64],
    "number": ["1", True, None, [], "Infinity"],
}


@pytest.mark.parametrize(("getter", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_what_was_written_is_read(getter: str, value: Any) -> None:
    said = GETTERS[getter](documents.parse(json.dumps({"key": value}).encode()), "key")
    assert (os.fspath(said) if isinstance(said, os.PathLike) else list(said) if isinstance(said, tuple) else said) == value


@pytest.mark.parametrize(("getter", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_of_another_type_is_named(getter: str, value: Any) -> None:
    node = documents.parse(json.dumps({"outer": [{"key": value}]}).encode()).items("outer")[0]
    with pytest.raises(Malformed) as caught:
        GETTERS[getter](node, "key")
    assert caught.value.where.startswith("outer[0].key")


@pytest.mark.parametrize("getter", GETTERS)
def test_a_missing_key_is_named(getter: str) -> None:
    with pytest.raises(Malformed, match="it is missing") as caught:
        GETTERS[getter](Node({}, "answer"), "words")
    assert caught.value.where == "answer.words"
    with pytest.raises(Malformed, match="it must be an object"):
        GETTERS[getter](Node([]), "words")


def test_an_element_is_named_by_its_number() -> None:
    with pytest.raises(Malformed) as caught:
        documents.parse(b'{"answer": {"words": ["a", "b", 3]}}').get("answer").texts("words")
    assert str(caught.value) == "answer.words[2]: it must be a string"


def test_whether_a_key_is_there() -> None:
    assert "a" in Node({"a": None})
    assert "b" not in Node({"a": None})
    assert "a" not in Node(["a"])


ABSURD = {
    "empty": b"",
    "cut off": b'{"a": "b',
    "an array": b"[]",
    "a string": b'"a"',
    "null": b"null",
    "zeros": bytes(50),
    "nested": b'{"a": ' + b"[" * 100_000,
    "nested and closed": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "objects nested": b'{"a": ' * 50_000 + b"1" + b"}" * 50_000,
    "infinity": b'{"a": Infinity}',
    "minus infinity": b'{"a": -Infinity}',
    "no number": b'{"a": NaN}',
    "a huge integer": b'{"a": ' + b"9" * 100_000 + b"}",
    "a long integer": b'{"a": ' + b"9" * 30 + b"}",
    "no UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a key twice": b'{"a": 1, "a": 2}',
    "a key twice inside": b'{"b": {"a": 1, "a": 1}}',
    "two documents": b'{"a": 1}{"a": 1}',
}


@pytest.mark.parametrize("data", ABSURD.values(), ids=ABSURD)
def test_an_absurd_document_is_malformed_and_not_there(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(Malformed):
        documents.parse(data)
    (tmp_path / "x").write_bytes(data)
    assert documents.read(tmp_path / "x") is None


def test_a_number_that_is_too_large_for_a_float() -> None:
    with pytest.raises(Malformed, match="must be a number"):
        documents.parse(b'{"a": 1e999}').number("a")


def test_a_file_that_is_too_large_is_not_there(tmp_path: Path) -> None:
    data = b'{"a": "' + b"x" * (documents.LIMIT - 9) + b'"}'
    (tmp_path / "x").write_bytes(data)
    assert documents.read(tmp_path / "x") is not None
    (tmp_path / "x").write_bytes(data + b" ")
    assert documents.read(tmp_path / "x") is None


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, partial(os.symlink, "real"), partial(os.symlink, "x")])
def test_what_is_no_regular_file_is_not_there(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "real").write_text("{}")
    make(tmp_path / "x")
    assert documents.read(tmp_path / "x") is None
    assert documents.read(tmp_path / "x" / "y") is None


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    assert documents.read(tmp_path / "a\0b") is None
    assert documents.read(tmp_path / ("a" * 5000)) is None
    assert documents.read(tmp_path / "absent") is None


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_every_document_that_is_written_is_read_back(document: dict[str, Any]) -> None:
    assert documents.parse((json.dumps(document, indent=1, sort_keys=True) + "\n").encode()).value == document


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()), st.sampled_from(sorted(GETTERS)))
def test_no_bytes_raise_anything_else(data: bytes, getter: str) -> None:
    try:
        document = documents.parse(data)
    except Malformed:
        return
    for key in [*document.value, "absent"]:
        try:
            GETTERS[getter](document, key)
        except Malformed as e:
            assert e.where or not key


def test_a_document_is_written_and_read(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x", {"b": 1, "a": ["é"]})
    node = documents.read(tmp_path / "x")
    assert node is not None
    assert (node.integer("b"), node.texts("a")) == (1, ("é",))
