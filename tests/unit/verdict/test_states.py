# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of states over every observation there is: nothing contradicts itself, and nothing is left out."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.config import Config
from knetstatd.core.events import Event
from knetstatd.core.model import (
    Action,
    Answer,
    Artefact,
    Attempt,
    Check,
    Headers,
    KernelState,
    Kind,
    Limits,
    Loaded,
    Observation,
    Outcome,
    Proof,
    Rehearsed,
    Result,
    Retry,
    Source,
    Step,
    Why,
)  # fmt: skip
from knetstatd.core.planner import CRASHES, LOADS, plan
from knetstatd.verdict import judge, states
from knetstatd.verdict.observe import Machine, Seen
from knetstatd.verdict.states import Judgement, State

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
NOW = 1000.0
ATTEMPTS: list[Attempt | None] = [
    None,
    *(Attempt(next(k for k in Kind if k.retry is retry), 1, later, "why", "how") for retry in Retry for later in (0.0, 1e9)),
    Attempt(Kind.EXCLUDED, 1, reason="why"),
    Attempt(Kind.TIMEOUT, 3, reason="why"),
    Attempt(Kind.INTERRUPTED, CRASHES, reason="why", loading=True),
    *(Attempt(kind, 1, 1e9, "why", loading=True) for kind in (Kind.REFUSED, Kind.DENIED, Kind.DURING_TRANSACTION)),
]
PROOFS = {
    Artefact.NONE: (),
    Artefact.BAD: (("m", Proof("/m.ko", (Check("vermagic", Result.FAIL, found="another"),))),),
    Artefact.UNKNOWN: (("m", Proof("/m.ko", (Check("symbols", Result.UNKNOWN, found="unknown"),))),),
    Artefact.OTHER: (("m", Proof("/m.ko", (Check("release", Result.WARN, found="another"),))),),
    Artefact.DENIED: (("m", Proof("/m.ko", (Check("modprobe", Result.FAIL, found="blacklist", fix="take it out"),))),),
    Artefact.GOOD: (("m", Proof("/m.ko", (Check("release", Result.PASS),))),),
}


def every_observation() -> Iterator[Observation]:
    """Each combination of what the planner and the table tell apart."""
    loads = ((), (NOW - 5,), tuple(NOW - 60 * n for n in range(LOADS + 1)))
    for values in itertools.product(
        KernelState, Source, Headers, Artefact, (Artefact.NONE, Artefact.GOOD), Loaded, Rehearsed, (False,), ("", "apt"),
        ("", "dkms"), ("", "us"), (NOW - 1, 0.0), ATTEMPTS,
    ):  # fmt: skip
        o = Observation("m", "6.1", "1", *values)  # type: ignore[arg-type]
        if (o.state, o.source, o.headers) != (KernelState.BOOTABLE, Source.REGISTERED, Headers.COMPLETE) and (
            o.foreign_dkms or o.own_run or o.changed or o.staged is Artefact.GOOD
        ):
            continue  # the planner does not come to ask for these
        yield o
        if o.loaded is Loaded.NO and not o.own_run and o.installed in (Artefact.GOOD, Artefact.UNKNOWN):
            yield from (o._replace(loads=some) for some in loads[1:])


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path, Config())
    made.next = "6.1"
    return made


def seen(o: Observation) -> Seen:
    refused = Answer(Outcome.REFUSED, "init", "the kernel refuses m", "tell its author")
    answer = refused if o.rehearsed is Rehearsed.BAD else None
    return Seen(o, PROOFS[o.installed], answer=answer, source_reason="no source", source_fix="dkms add", remark="m")


def test_no_verdict_contradicts_itself(machine: Machine) -> None:
    limits = itertools.cycle((Limits(), Limits(install_headers=True), Limits(reload=False)))
    required = Machine(machine.root, Config(rehearse="require"))
    told: set[State] = set()
    answered: set[tuple[Action, Why]] = set()
    cases = 0
    for o, chosen in zip(every_observation(), limits, strict=False):
        step = plan(o, NOW, chosen)
        for one in (machine, required) if o.rehearsed in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE) else (machine,):
            case = states.Case(one, seen(o), step)
            row, judgement = states.row(case), states.judgement(case)
            state = row.state(judgement)
            told.add(state)
            cases += 1
            ready = judgement.ready if state.ready is None else state.ready
            # What the token says is what `ready` says, and what `ready` says is what the files and the kernels say.
            assert state.ready in (None, ready), (o, step)
            if ready:
                assert o.installed in (Artefact.GOOD, Artefact.OTHER), (o, step)
                assert o.rehearsed is not Rehearsed.BAD, (o, step)
                assert o.loaded is not Loaded.FAULTY, (o, step)
                assert one is machine or o.rehearsed not in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE), (o, step)
            # What cannot be known is never ready; nor is it called wrong, unless a build of it failed or is about to be made.
            if judgement is Judgement.UNKNOWN:
                assert not ready, (o, step)
            assert (state is State.READY) <= (o.installed is Artefact.GOOD), (o, step)
            # A step that the daemon is about to take, or waits to take, is under way; what it gave up is not.
            assert row.progress == (
                step.action not in (Action.DONE, Action.GIVE_UP)
                and (step.action, step.why) not in {(Action.WAIT, Why.BACKOFF), (Action.WAIT, Why.NOT_REHEARSED)}
            ), (o, step)
            answered.add((step.action, step.why))
    assert cases > 100_000
    assert answered == set(states.TABLE), "each answer of the planner has a row, and each row is an answer"
    assert told == set(State) - {State.KERNEL_HALF_CONFIGURED}, "each state is a row's, and this one is dpkg's"


def test_every_verdict_that_is_not_ready_says_why(machine: Machine) -> None:
    for step in states.TABLE:
        attempt = Attempt(Kind.COMPILE, 1, NOW, "line 3 is wrong", "correct it")
        o = Observation("m", "6.1", "1", installed=Artefact.BAD, attempt=attempt, transaction="apt", foreign_dkms="dkms")
        found = judge.verdict(machine, seen(o), Step(*step, until=NOW))
        assert found.ready or found.reason or step[1] in (Why.HEADERS_MISSING, Why.HEADERS_PARTIAL, Why.READY), found
        assert found.json()["state"] == found.state.value


def test_a_failure_is_told_by_the_class_of_its_retry() -> None:
    assert states.failure(Attempt(Kind.COMPILE, 1))[0] is Event.GAVE_UP
    assert states.failure(Attempt(Kind.TIMEOUT, 2))[0] is Event.FAILED
    assert states.failure(Attempt(Kind.TIMEOUT, 3))[0] is Event.GAVE_UP
    assert states.failure(Attempt(Kind.DISK, 9))[0] is Event.FAILED
    assert states.failure(Attempt(Kind.REHEARSAL, 1))[0] is Event.NOT_REHEARSED
    assert "once" in states.failure(Attempt(Kind.MISMATCH, 1))[1]


def test_every_state_is_explained() -> None:
    """In the manual's list, and in a section of its own of the page that a verdict names."""
    manual = (ROOT / "man/knetstatctl.1.scd").read_text().split("## status")[1].split("\n## ")[0]
    assert re.findall(r"^\*([a-z-]+)\*$", manual, re.M) == [str(state) for state in State]
    page = (ROOT / "docs/troubleshooting.md").read_text()
    assert re.findall(r"^## ([a-z-]+)$", page, re.M) == [str(state) for state in State]
    for state in State:
        assert state.documentation == f"troubleshooting.md#{state}"
