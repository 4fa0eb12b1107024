# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of states over every observation there is: nothing contradicts itself, and nothing is left out."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kerneltree
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
from knetstatd.state import attempts
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
    whole = (KernelState.BOOTABLE, Source.REGISTERED, Headers.COMPLETE)
    for there in itertools.product(KernelState, Source, Headers):
        # Where one of these is missing, the planner does not come to ask for the rest.
        last = 2 if there == whole else 1
        for values in itertools.product(
            Artefact, (Artefact.NONE, Artefact.GOOD)[:last], Loaded, Rehearsed, (False,), ("", "apt"), ("", "dkms")[:last],
            ("", "us")[:last], (0.0, NOW - 1)[:last], ATTEMPTS,
        ):  # fmt: skip
            o = Observation("m", "6.1", "1", *there, *values)  # type: ignore[arg-type]
            yield o
            if o.loaded is Loaded.NO and not o.own_run and o.installed in (Artefact.GOOD, Artefact.UNKNOWN):
                yield from (o._replace(loads=some) for some in loads[1:])
            if o.installed is Artefact.DENIED:
                yield o._replace(initrd=True)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path, Config())
    made.next = "6.1"
    return made


REFUSED = Answer(Outcome.REFUSED, "init", "the kernel refuses m", "tell its author")


def seen(o: Observation) -> Seen:
    answer = REFUSED if o.rehearsed is Rehearsed.BAD else None
    return Seen(o, PROOFS[o.installed], answer=answer, source_reason="no source", source_fix="dkms add", remark="m")


def test_no_verdict_contradicts_itself(machine: Machine) -> None:
    limits = itertools.cycle((
        Limits(), Limits(install_headers=True), Limits(reload=False), Limits(make_initrds=True), Limits(reload=False),
    ))  # fmt: skip
    required = Machine(machine.root, Config(rehearse="require"))
    told: set[State] = set()
    answered: set[tuple[Action, Why, bool]] = set()
    cases = 0
    for o, chosen in zip(every_observation(), limits, strict=False):
        step, what = plan(o, NOW, chosen), seen(o)
        for one in (machine, required) if o.rehearsed in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE) else (machine,):
            case = states.Case(one, what, step)
            row, judgement = states.row(case), states.judgement(case)
            state = row.state(judgement)
            answered.add((*step[:2], row.progress))
            told.add(state)
            cases += 1
            # What the token says is what `ready` says, and what `ready` says is what the files and the kernels say.
            if (ready := state.ready) is None:
                ready = judgement.ready
            if ready:
                assert o.installed in (Artefact.GOOD, Artefact.OTHER), (o, step)
                assert o.rehearsed is not Rehearsed.BAD, (o, step)
                assert o.loaded is not Loaded.FAULTY, (o, step)
                assert one is machine or o.rehearsed not in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE), (o, step)
            # What cannot be known is never ready; nor is it called wrong, unless a build of it failed or is about to be made.
            if judgement is Judgement.UNKNOWN:
                assert not ready, (o, step)
            assert (state is State.READY) <= (o.installed is Artefact.GOOD), (o, step)
    assert cases > 100_000
    # A step that the daemon is about to take, or waits to take, is under way; what it gave up is not.
    for action, why, progress in answered:
        given_up = {(Action.WAIT, Why.BACKOFF), (Action.WAIT, Why.NOT_REHEARSED)}
        assert progress == (action not in (Action.DONE, Action.GIVE_UP) and (action, why) not in given_up), (action, why)
    stepped = {(action, why) for action, why, _ in answered}
    assert stepped == set(states.TABLE), "each answer of the planner has a row, and each row is an answer"
    assert told == set(State) - {State.KERNEL_HALF_CONFIGURED}, "each state is a row's, and this one is dpkg's"


def test_every_verdict_that_is_not_ready_says_why(machine: Machine) -> None:
    for step in states.TABLE:
        attempt = Attempt(Kind.COMPILE, 1, NOW, "line 3 is wrong", "correct it")
        o = Observation("m", "6.1", "1", installed=Artefact.BAD, attempt=attempt, transaction="apt", foreign_dkms="dkms")
        found = judge.verdict(machine, seen(o), Step(*step, until=NOW))
        assert found.ready or found.reason or step[1] in (Why.HEADERS_MISSING, Why.HEADERS_PARTIAL, Why.READY), found
        assert found.json()["state"] == found.state.value


BARE = Observation("m", "6.1", "1", installed=Artefact.BAD)
BLOCKER = Check("modprobe", Result.FAIL, "", "install m /bin/false", "modprobe loads nothing", "Remove that line")


def told(machine: Machine, step: Step, o: Observation = BARE, **more: Any) -> tuple[str, str]:
    """What a person reads: the sentence and the cure."""
    case = states.Case(machine, Seen(o, **more), step)
    row = states.row(case)
    return row.reason(case), row.fix(case)


class TestSentences:
    """Each that is made of something names it."""

    def test_the_check_of_the_module_that_does_not_load_is_named(self, machine: Machine) -> None:
        good, odd = Proof("/a.ko", (Check("release", Result.WARN, reason="another release"),)), Proof("/b.ko", (BLOCKER,))
        step = Step(Action.GIVE_UP, Why.DENIED)
        assert told(machine, step, installed=(("a", good), ("b", odd))) == ("modprobe loads nothing", "Remove that line")
        silent = BLOCKER._replace(reason="")
        assert told(machine, step, installed=(("b", Proof("/b.ko", (silent,))),))[0] == "install m /bin/false"
        reason, fix = told(machine, step)
        assert (bool(reason), fix) == (True, "")

    def test_a_wrong_module(self, machine: Machine) -> None:
        step, build = Step(Action.STAGE, Why.WRONG), "knetstatctl build 6.1"
        bare, fix = told(machine, step)
        assert fix == build
        against = (("b", Proof("/b.ko", (BLOCKER,))),)
        assert told(machine, step, installed=against) == (f"{bare}: modprobe loads nothing", build)
        silent = (("b", Proof("/b.ko", (BLOCKER._replace(reason=""),))),)
        assert told(machine, step, installed=silent) == (f"{bare}: install m /bin/false", build)
        refused = Answer(Outcome.REFUSED, "init", "the kernel refuses m")
        said = told(machine, step, installed=against, answer=refused)
        assert said == (f"{bare}: in the rehearsal, the kernel refuses m", build)

    def test_what_is_to_be_reloaded(self, machine: Machine) -> None:
        step = Step(Action.DONE, Why.OUTDATED)
        assert told(machine, step, remark="m")[1] == "modprobe -r m && modprobe m"
        assert told(machine, step, remark="m n")[1] == "modprobe -r m n && modprobe -a m n"
        assert "it answers nothing" in told(machine, Step(Action.DONE, Why.FAULTY), remark="it answers nothing")[0]

    def test_when_the_next_attempt_is_due(self, machine: Machine) -> None:
        # A busy machine may be ten seconds late.
        for seconds, unit, least, most in ((-9, "s", 0, 0), (119, "s", 109, 119), (135, "min", 2, 2), (3609, "min", 59, 60)):
            attempt = Attempt(Kind.DISK, 2, attempts.now() + seconds, "the disk is full", "free some")
            said, fix = told(machine, Step(Action.WAIT, Why.BACKOFF, NOW), BARE._replace(attempt=attempt))
            found = re.fullmatch(r"the disk is full; attempt 2 failed, the next is due in (\d+) (s|min)", said)
            assert found is not None, said
            assert (found[2], fix) == (unit, "free some")
            assert least <= int(found[1]) <= most, said

    def test_somebody_unloaded_it(self, machine: Machine) -> None:
        step = Step(Action.GIVE_UP, Why.UNLOADED)
        assert f"{LOADS} times within an hour" in told(machine, step)[0]
        left = Machine(machine.root, Config(unloaded="leave"))
        assert "the configuration" in told(left, step)[0]

    def test_who_is_waited_for(self, machine: Machine) -> None:
        wait = Step(Action.WAIT, Why.TRANSACTION, NOW)
        bare = told(machine, wait)[0]
        assert told(machine, wait, BARE._replace(transaction="apt runs")) == (f"{bare}: apt runs", "")
        dkms = BARE._replace(foreign_dkms="dkms autoinstall")
        assert told(machine, Step(Action.WAIT, Why.FOREIGN_DKMS, NOW), dkms)[0].endswith(": dkms autoinstall")

    @pytest.mark.spawns
    def test_headers(self, machine: Machine) -> None:
        kerneltree.offer(machine.root, "linux-headers-6.1")
        missing, partial = (told(machine, Step(Action.GIVE_UP, why))[1] for why in (Why.HEADERS_MISSING, Why.HEADERS_PARTIAL))
        assert "linux-headers-6.1" in missing
        assert "--reinstall" in partial
        assert "--reinstall" not in missing

    def test_a_package_that_leaves_the_kernel_out(self, machine: Machine) -> None:
        excluded = BARE._replace(installed=Artefact.NONE, attempt=Attempt(Kind.EXCLUDED, 1, reason="BUILD_EXCLUSIVE"))
        case = states.Case(machine, Seen(excluded), Step(Action.GIVE_UP, Why.FAILED))
        row = states.row(case)
        assert (row.state(states.judgement(case)), row.reason(case)) == (State.EXCLUDED, "BUILD_EXCLUSIVE")
        other = case._replace(step=Step(Action.STAGE, Why.NOT_BUILT))
        assert states.row(other).state(states.judgement(other)) is State.NOT_BUILT


@pytest.mark.parametrize(
    ("changes", "why", "judgement"),
    [
        ({"installed": Artefact.GOOD}, Why.READY, Judgement.GOOD),
        ({"installed": Artefact.OTHER}, Why.READY, Judgement.OTHER),
        ({"installed": Artefact.UNKNOWN}, Why.READY, Judgement.UNKNOWN),
        ({"installed": Artefact.DENIED}, Why.DENIED, Judgement.UNKNOWN),  # by no check that failed: see below
        ({"installed": Artefact.GOOD, "loaded": Loaded.FAULTY}, Why.FAULTY, Judgement.BAD),
        ({"installed": Artefact.GOOD, "rehearsed": Rehearsed.BAD}, Why.REHEARSAL, Judgement.BAD),
        ({"installed": Artefact.GOOD, "rehearsed": Rehearsed.DUE}, Why.NOT_REHEARSED, Judgement.GOOD),
        # What the running kernel refused to load it will refuse again; what modprobe's configuration denied, it may not.
        ({"installed": Artefact.GOOD, "attempt": Attempt(Kind.REFUSED, 1, loading=True)}, Why.FAILED, Judgement.BAD),
        ({"installed": Artefact.GOOD, "attempt": Attempt(Kind.DENIED, 1, loading=True)}, Why.FAILED, Judgement.GOOD),
        ({"installed": Artefact.GOOD, "attempt": Attempt(Kind.COMPILE, 1)}, Why.FAILED, Judgement.GOOD),
        ({"installed": Artefact.GOOD, "attempt": Attempt(Kind.REFUSED, 1, loading=True)}, Why.BACKOFF, Judgement.GOOD),
    ],
)
def test_judgements(machine: Machine, changes: dict[str, Any], why: Why, judgement: Judgement) -> None:
    case = states.Case(machine, Seen(BARE._replace(**changes)), Step(Action.GIVE_UP, why))
    assert states.judgement(case) is judgement


@pytest.mark.parametrize("rehearsed", [Rehearsed.DUE, Rehearsed.IMPOSSIBLE])
def test_what_must_be_rehearsed_and_is_not_is_not_ready(machine: Machine, rehearsed: Rehearsed) -> None:
    seen = Seen(BARE._replace(installed=Artefact.GOOD, rehearsed=rehearsed))
    case = states.Case(machine, seen, Step(Action.DONE, Why.READY))
    assert states.judgement(case) is Judgement.GOOD
    assert states.judgement(case._replace(machine=Machine(machine.root, Config(rehearse="require")))) is Judgement.BAD


def test_what_the_daemon_does_after_a_failure() -> None:
    """The builder's sentence: never, once, after the transaction, or in so many seconds."""
    never, later = "does not try again until source, headers or compiler change", attempts.now() + 60
    for attempt, words in {
        Attempt(Kind.COMPILE, 1, later): never,
        Attempt(Kind.TIMEOUT, 3, later): never,
        Attempt(Kind.DISK, 1, later - 120): "again in 0 s",
        Attempt(Kind.DURING_TRANSACTION, 1, later): "when the package transaction is over",
        Attempt(Kind.REMOVED, 1, later): "again if it comes back",
    }.items():
        assert words in judge.failure(attempt)[1], attempt
    for attempt in (Attempt(Kind.TIMEOUT, 2, later), Attempt(Kind.DISK, 9, later), Attempt(Kind.REHEARSAL, 1, later)):
        seconds = re.search(r" in (\d+) s$", judge.failure(attempt)[1])
        assert seconds is not None
        assert 30 < int(seconds[1]) <= 60, "a busy machine may be late"


@pytest.mark.parametrize(("result", "state"), [(Result.UNKNOWN, State.UNPROVEN), (Result.FAIL, State.BLOCKED)])
def test_an_initrd_that_cannot_be_read_blocks_nothing(machine: Machine, result: Result, state: State) -> None:
    """No build would help either way; but what is only unknown is not called wrong."""
    o = Observation("m", "6.1", "1", installed=Artefact.DENIED)
    proof = Proof("/m.ko", (Check("release", Result.PASS), Check("initrd", result, found="x", fix="update-initramfs")))
    verdict = judge.verdict(machine, Seen(o, (("m", proof),)), plan(o, NOW, Limits()))
    assert (verdict.state, verdict.ready, verdict.fix) == (state, False, "update-initramfs")


def test_what_is_in_the_way_is_named_before_what_is_wrong_with_the_file(machine: Machine) -> None:
    """modprobe takes another's file, which is damaged besides: that one is not ours to build."""
    o = Observation("m", "6.1", "1", installed=Artefact.DENIED)
    checks = (Check("signature", Result.FAIL, found="damaged"), Check("winner", Result.FAIL, reason="another file is taken"))
    verdict = judge.verdict(machine, Seen(o, (("m", Proof("/m.ko", checks)),)), plan(o, NOW, Limits()))
    assert (verdict.state, verdict.reason) == (State.BLOCKED, "another file is taken")


def test_a_failure_is_told_by_the_class_of_its_retry() -> None:
    assert judge.failure(Attempt(Kind.COMPILE, 1))[0] is Event.GAVE_UP
    assert judge.failure(Attempt(Kind.TIMEOUT, 2))[0] is Event.FAILED
    assert judge.failure(Attempt(Kind.TIMEOUT, 3))[0] is Event.GAVE_UP
    assert judge.failure(Attempt(Kind.DISK, 9))[0] is Event.FAILED
    assert judge.failure(Attempt(Kind.REHEARSAL, 1))[0] is Event.NOT_REHEARSED
    assert "once" in judge.failure(Attempt(Kind.MISMATCH, 1))[1]


def test_what_is_told_and_what_is_under_way() -> None:
    """Who gives up says so, once; work, and waiting for the work of others, shows progress."""
    for (action, why), row in states.TABLE.items():
        idle = action in (Action.DONE, Action.GIVE_UP) or (why in (Why.BACKOFF, Why.NOT_REHEARSED) and action is Action.WAIT)
        assert row.progress is not idle, (action, why)
        assert row.event is not None or action is not Action.GIVE_UP, why
    told = {why for (_, why), row in states.TABLE.items() if row.event is Event.WAITING}
    assert told == {Why.TRANSACTION, Why.FOREIGN_DKMS}


def test_every_state_is_explained() -> None:
    """In the manual's list, and in a section of its own of the page that a verdict names."""
    manual = (ROOT / "man/knetstatctl.1.scd").read_text().split("## status")[1].split("\n## ")[0]
    assert re.findall(r"^\*([a-z-]+)\*$", manual, re.M) == [str(state) for state in State]
    page = (ROOT / "docs/troubleshooting.md").read_text()
    assert re.findall(r"^## ([a-z-]+)$", page, re.M) == [str(state) for state in State]
    for state in State:
        assert state.documentation == f"troubleshooting.md#{state}"
