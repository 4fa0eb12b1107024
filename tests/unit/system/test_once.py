# SPDX-License-Identifier: GPL-2.0-or-later
"""Within one look a question is answered once; outside of a look, each time."""

from __future__ import annotations

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.system.once import once, one_look

asked: list[tuple[str, int]] = []


@once
def question(name: str, number: int = 0) -> int:
    asked.append((name, number))
    if number < 0:
        raise KnetstatdError("no answer")
    return len(asked)


@pytest.fixture(autouse=True)
def nothing_asked() -> None:
    asked.clear()


def test_outside_of_a_look_every_question_is_asked_anew() -> None:
    assert [question("a"), question("a")] == [1, 2]


def test_within_a_look_it_is_asked_once_for_the_same_arguments() -> None:
    with one_look():
        assert [question("a"), question("b"), question("a"), question("a", number=1), question("a", number=1)] == [
            1,
            2,
            1,
            3,
            3,
        ]


def test_a_look_within_a_look_is_a_part_of_it() -> None:
    with one_look():
        with one_look():
            assert question("a") == 1
        assert question("a") == 1


def test_a_refusal_is_an_answer() -> None:
    with one_look():
        for _ in range(2):
            with pytest.raises(KnetstatdError, match="no answer"):
                question("a", -1)
    assert asked == [("a", -1)]


def test_the_next_look_asks_anew_also_after_one_that_failed() -> None:
    @one_look()
    def failed() -> None:
        question("a", -1)

    with pytest.raises(KnetstatdError, match="no answer"):
        failed()
    assert question("a") == 2
    with one_look():
        assert question("a") == 3


def test_it_decorates_a_function() -> None:
    @one_look()
    def look() -> list[int]:
        return [question("a"), question("a")]

    assert look() == [1, 1]
    assert look() == [2, 2]
