# SPDX-License-Identifier: GPL-2.0-or-later
"""The few questions that a value answers itself: whether a file loads, what to name first, whether to try again."""

from __future__ import annotations

import pytest

from knetstatd.core.model import ELSEWHERE, REMARKS, UNPUBLISHED, Check, Outcome, Proof, Result

PASS, FAIL, WARN, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.WARN, Result.UNKNOWN, Result.NOT_APPLICABLE


def proof(path: str = "/m.ko", **checks: Result) -> Proof:
    return Proof(path, tuple(Check(name, result) for name, result in checks.items()))


@pytest.mark.parametrize(
    ("checks", "loads", "fails", "current"),
    [
        ({}, True, False, True),
        ({"symbols": PASS, "key": NA}, True, False, True),
        ({"symbols": FAIL}, False, True, True),
        ({"symbols": UNKNOWN}, False, False, True),
        ({"release": WARN}, True, False, False),
        ({"origin": WARN}, True, False, False),
        ({"compiler": WARN}, True, False, True),
        ({"compiler": UNKNOWN, "origin": UNKNOWN}, True, False, True),
        ({"compiler": FAIL}, False, True, True),
        ({"form": UNKNOWN}, False, False, True),
    ],
)
def test_whether_a_file_loads(checks: dict[str, Result], loads: bool, fails: bool, current: bool) -> None:
    one = proof(**checks)
    assert (one.loads, one.fails, one.is_current) == (loads, fails, current)


@pytest.mark.parametrize(
    ("checks", "refused"),
    [
        ({"contents": FAIL}, False), ({"winner": FAIL, "initrd": FAIL}, False), ({"symbols": UNKNOWN}, False), ({}, False),
        ({"contents": FAIL, "crcs": FAIL}, True), ({"compression": FAIL}, True), ({"modprobe": FAIL}, True),
    ],
)  # fmt: skip
def test_a_wrong_file_is_not_one_that_the_kernel_refuses(checks: dict[str, Result], refused: bool) -> None:
    assert proof(**checks).is_refused == refused
    assert proof("", **checks).is_refused


def test_no_file_never_loads() -> None:
    nothing = proof("", file=FAIL)
    assert (nothing.loads, nothing.fails, nothing.is_installed) == (False, True, False)
    assert proof("").fails
    assert proof("", file=FAIL, winner=FAIL).is_installed, "something else than a file is missing"
    assert proof().is_installed


def test_what_is_elsewhere_does_not_count_against_a_file() -> None:
    denied = proof(symbols=PASS, modprobe=FAIL, signature=UNKNOWN)
    assert not denied.holds(ELSEWHERE)
    assert denied.holds(UNPUBLISHED)
    assert not proof(symbols=FAIL).holds(UNPUBLISHED)
    assert REMARKS.isdisjoint(UNPUBLISHED)


def test_a_file_fresh_from_its_linker_may_have_an_unknown_form() -> None:
    for name in ("form", "btf"):
        assert not proof(**{name: UNKNOWN}).holds()
        assert proof(**{name: UNKNOWN}).holds(linked=True)
        assert not proof(**{name: FAIL}).holds(linked=True)
    assert not proof(symbols=UNKNOWN).holds(linked=True)


def test_the_check_to_name_first() -> None:
    one = proof(a=PASS, b=WARN, c=UNKNOWN, d=FAIL, e=FAIL)
    assert one.worst == Check("d", FAIL)
    assert one.first(frozenset("d")) == Check("e", FAIL)
    assert one.first(frozenset("de")) == Check("c", UNKNOWN)
    assert one.first(frozenset("cde")) == Check("b", WARN)
    assert one.first(frozenset("bcde")) is None
    assert proof(a=NA).worst is None


def test_what_speaks_for_a_module_in_a_rehearsal() -> None:
    assert {outcome for outcome in Outcome if outcome.good} == {Outcome.LOADED, Outcome.DECLINED}
