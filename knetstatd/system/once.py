# SPDX-License-Identifier: GPL-2.0-or-later
"""Within one look a question about the machine is answered once.

So the answers of a look agree with each other, and what many modules share is read for the first of them. Outside of a look
every question is asked anew.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
T = TypeVar("T")

_answers: list[dict[Any, tuple[Any, Exception | None]]] = []  # one while a look goes on, else none


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    """One look, or a part of the one that goes on."""
    if _answers:
        yield
        return
    _answers.append({})
    try:
        yield
    finally:
        _answers.clear()


def once(question: Callable[P, T]) -> Callable[P, T]:
    """A function whose answer, or whose exception, is kept until the look ends. Its arguments are hashable."""

    @functools.wraps(question)
    def asked(*args: P.args, **more: P.kwargs) -> T:
        if not _answers:
            return question(*args, **more)
        key = (question, args, *more.items())
        if key not in _answers[0]:
            try:
                _answers[0][key] = (question(*args, **more), None)
            except Exception as error:
                _answers[0][key] = (None, error)
        answer, refusal = _answers[0][key]
        if refusal is not None:
            raise refusal.with_traceback(None)
        return answer  # type: ignore[no-any-return]

    return asked
