# SPDX-License-Identifier: GPL-2.0-or-later
"""Causes from logs; whether they are right for real logs is shown in the containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.core.model import Kind
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


@pytest.mark.parametrize("code", [3, 4])
def test_what_is_wrong_in_the_tree_of_dkms_is_no_fault_of_the_module(code: int) -> None:
    for output, reason in (
        ("Error! This module has already been built", "another dkms is at work, or was killed"),
        ("Error! Could not locate dkms.conf file.", "names a source that does not exist"),
    ):
        cause = build_log.classify("", output, code)
        assert cause.kind is Kind.DKMS_TREE
        assert reason in cause.reason
        assert cause.evidence == (output,)
    assert build_log.classify("", "No space left on device; already been built", code).kind is not Kind.DKMS_TREE
    assert build_log.classify("", "Error! This module has already been built", 10).kind is not Kind.DKMS_TREE


def test_a_package_that_is_built_after_one_that_is_not_there() -> None:
    cause = build_log.classify("", "Error! m/1 cannot be built: missing BUILD_DEPENDS: other.", 14)
    assert (cause.kind, cause.subject) == (Kind.PACKAGES, "other")
