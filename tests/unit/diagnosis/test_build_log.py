# SPDX-License-Identifier: GPL-2.0-or-later
"""Causes from logs; whether they are right for real logs is shown in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from knetstatd.diagnosis import build_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[dict[str, str]], Path]

def test_evidence_is_quoted_and_cannot_forge_lines() -> None:
    log = "\x1b[31mm.c:1:1: error: x\rMESSAGE=forged\x07\n<3>y\n"
    cause = build_log.classify(log, "", 10)
    assert cause.evidence
    assert all(line.isprintable() for line in cause.evidence)
    assert cause.reason.isprintable()


@given(st.text(max_size=300), st.text(max_size=300), st.integers(-64, 255))
def test_any_log_has_a_cause(log: str, output: str, code: int) -> None:
    cause = build_log.classify(log, output, code)
    assert cause.reason.isprintable()
    assert len(cause.evidence) <= 6


def test_evidence_is_at_most_three_different_lines() -> None:
    log = "a.c:1:1: error: x\n" * 5 + "".join(f"b{n}.c:1:1: error: y\n" for n in range(5))
    assert build_log.classify(log, "", 10).evidence == ("a.c:1:1: error: x", "b0.c:1:1: error: y", "b1.c:1:1: error: y")
