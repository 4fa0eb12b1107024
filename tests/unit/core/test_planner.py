# SPDX-License-Identifier: GPL-2.0-or-later
"""`plan` over every observation there is: total, one answer each, and the rules hold over all of them."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from knetstatd.core.model import (
    Action,
    Artefact,
    Attempt,
    Headers,
    KernelState,
    Kind,
    Limits,
    Loaded,
    Observation,
    Rehearsed,
    Retry,
    Source,
    Step,
    Why,
)
from knetstatd.core.planner import CRASHES, LOADS, LOADS_WITHIN, POLL, backoff, plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOW = 1000.0
WORK = {Action.STAGE, Action.PUBLISH, Action.REHEARSE, Action.LOAD, Action.FETCH_HEADERS, Action.MAKE_INITRD}
# The planner tells classes of failure apart only by whether a retry can help.
ONE_OF_EACH = [next(kind for kind in Kind if kind.retry is retry) for retry in Retry]
ATTEMPTS: list[Attempt | None] = [
    None,
    *(Attempt(kind, 1, later) for kind in ONE_OF_EACH for later in (0.0, NOW + 30)),
    Attempt(Kind.TIMEOUT, 3),
    Attempt(Kind.INTERRUPTED, CRASHES, loading=True),
    *(Attempt(kind, 1, NOW + 30, loading=True) for kind in (Kind.REFUSED, Kind.INTERRUPTED, Kind.DURING_TRANSACTION)),
]


def every_observation() -> Iterator[Observation]:
    """Each combination of the values that the planner tells apart."""
    whole = (KernelState.BOOTABLE, Source.REGISTERED, Headers.COMPLETE)
    builds = tuple(itertools.product((Artefact.NONE, Artefact.GOOD, Artefact.BAD), (False, True)))
    for there in itertools.product(KernelState, Source, Headers):
        # Where one of these is missing nothing can be built: what was staged, and whether a hook builds, is not told apart.
        for (staged, hook), installed, loaded, *rest in itertools.product(
            builds if there == whole else ((Artefact.NONE, False), (Artefact.GOOD, True)), Artefact, Loaded,
            ("", "apt"), ("", "dkms"), ("", "us"), (0.0, NOW - 1), ATTEMPTS,
        ):  # fmt: skip
            values = (*there, installed, staged, loaded, Rehearsed.NOT_DUE, hook, *rest)
            o = Observation("m", "6.1", "1", *values)  # type: ignore[arg-type]
            yield o
            if o.installed is Artefact.DENIED:
                yield o._replace(initrd=True)
    # Rehearsed is only what is good.
    for values in itertools.product(
        KernelState, (Source.REGISTERED,), (Headers.COMPLETE,), (Artefact.GOOD,), (Artefact.NONE,), Loaded,
        set(Rehearsed) - {Rehearsed.NOT_DUE}, (False, True), ("", "apt"), ("", "dkms"), ("", "us"), (0.0, NOW - 1), ATTEMPTS,
    ):  # fmt: skip
        yield Observation("m", "6.1", "1", *values)  # type: ignore[arg-type]
    # Loadings are known only of what is not loaded.
    for values in itertools.product(
        KernelState, (Source.REGISTERED,), (Headers.COMPLETE,), (Artefact.GOOD,), (Artefact.NONE,), (Loaded.NO,),
        Rehearsed, (False,), ("", "apt"), ("", "dkms"), ("", "us"), (0.0, NOW - 1), ATTEMPTS,
    ):  # fmt: skip
        for loads in ((NOW - 5,), tuple(NOW - 60 * n for n in range(LOADS + 1))):
            yield Observation("m", "6.1", "1", *values, loads)  # type: ignore[arg-type, call-arg]


def assert_work(o: Observation, step: Step, limits: Limits) -> None:
    """The rules of each step that does something."""
    # Never build while anyone builds.
    assert not o.own_run, o
    alone = {Action.PUBLISH, Action.REHEARSE, Action.FETCH_HEADERS, Action.MAKE_INITRD}
    assert not (step.action in alone and (o.transaction or o.foreign_dkms)), o
    assert not (step.action is Action.STAGE and (o.hook_builds or o.removing) and (o.transaction or o.foreign_dkms)), o
    # What is there is loaded, by the running kernel alone; what did not come back from that is not tried for ever.
    if step.action is Action.LOAD:
        assert o.loaded is Loaded.NO, o
        assert o.installed in (Artefact.GOOD, Artefact.OTHER, Artefact.UNKNOWN), o
        assert not (o.attempt and o.attempt.loading and o.attempt.times >= CRASHES), o
        # What somebody unloads is left out, or loaded so many times and no more; what a kernel did not take is not loaded.
        assert len(o.loads) <= (LOADS if limits.reload else 0), o
        assert o.rehearsed is not Rehearsed.BAD, o
    # Only what is good is rehearsed, when it is due and quiet.
    if step.action is Action.REHEARSE:
        assert (o.installed, o.rehearsed, o.state) == (Artefact.GOOD, Rehearsed.DUE, KernelState.BOOTABLE), o
        assert o.changed + limits.settle <= NOW, o
    # An initrd is made only if the configuration says so, and only if that is what all hangs on.
    if step.action is Action.MAKE_INITRD:
        assert (o.installed, o.initrd, limits.make_initrds, o.state) == (Artefact.DENIED, True, True, KernelState.BOOTABLE), o
    # Work needs a kernel, a source, headers, and quiet.
    if step.action in {Action.STAGE, Action.PUBLISH}:
        assert o.state is KernelState.BOOTABLE, o
        assert o.source is Source.REGISTERED, o
        assert o.headers is Headers.COMPLETE, o
        assert o.changed + limits.settle <= NOW, o
    # What cannot heal is not tried again.
    if step.action is Action.REHEARSE and o.attempt is not None:
        assert o.attempt.not_before <= NOW or o.attempt.kind.retry is not Retry.BACKOFF, o
    elif o.attempt is not None and o.attempt.loading is (step.action is Action.LOAD):
        assert o.attempt.kind.retry is not Retry.NEVER, o
        assert o.attempt.not_before <= NOW or o.attempt.kind.retry is Retry.AFTER_TRANSACTION, o


def test_every_observation_has_an_answer_and_every_rule_holds() -> None:
    limits = (
        Limits(), Limits(install_headers=True), Limits(reload=False), Limits(make_initrds=True),
        Limits(install_headers=True, reload=False, make_initrds=True),
    )  # fmt: skip
    seen: Counter[tuple[Action, Why]] = Counter()
    count = 0
    for o in every_observation():
        count += 1
        step = plan(o, NOW, chosen := limits[count % 5])
        seen[step.action, step.why] += 1
        # What is good is left alone; only loading may follow.
        good = o.installed is Artefact.GOOD and o.rehearsed is not Rehearsed.BAD
        good = good or o.installed is Artefact.DENIED
        assert not (good and step.action in {Action.STAGE, Action.PUBLISH}), o
        if step.action in WORK:
            assert_work(o, step, chosen)
        assert not (step.why is Why.UNLOADED and len(o.loads) <= (LOADS if chosen.reload else 0)), o
        # A wait ends by itself, but for one for our own run, which ends with an event, and so does a limit; nothing else has a
        # time. None is in the past: that would be a busy loop.
        limited = step.why is Why.UNLOADED and chosen.reload
        assert (step.until is not None) == ((step.action is Action.WAIT and step.why is not Why.OWN_RUN) or limited), o
        assert step.until is None or step.until > NOW, o
        # Ready means that a good module is installed, and that no run of ours is still at work on it.
        if step.why is Why.READY:
            assert not (o.own_run and o.attempt), o
            assert (o.installed, o.rehearsed is Rehearsed.BAD) == (Artefact.GOOD, False), o
    assert count > 400_000
    expected = {
        (Action.DONE, Why.READY), (Action.DONE, Why.OUTDATED), (Action.DONE, Why.FAULTY),
        (Action.DONE, Why.NOT_A_KERNEL), (Action.DONE, Why.NO_IMAGE),
        (Action.WAIT, Why.OWN_RUN), (Action.WAIT, Why.SETTLING), (Action.WAIT, Why.TRANSACTION),
        (Action.WAIT, Why.FOREIGN_DKMS), (Action.WAIT, Why.BACKOFF), (Action.STAGE, Why.NOT_BUILT), (Action.STAGE, Why.WRONG),
        (Action.PUBLISH, Why.STAGED), (Action.LOAD, Why.NOT_LOADED), (Action.FETCH_HEADERS, Why.HEADERS_MISSING),
        (Action.GIVE_UP, Why.HEADERS_MISSING), (Action.GIVE_UP, Why.HEADERS_PARTIAL), (Action.GIVE_UP, Why.SOURCE_MISSING),
        (Action.GIVE_UP, Why.UNLOADED),
        (Action.GIVE_UP, Why.SOURCE_BROKEN), (Action.GIVE_UP, Why.FAILED), (Action.GIVE_UP, Why.DENIED),
        (Action.REHEARSE, Why.NOT_REHEARSED), (Action.MAKE_INITRD, Why.INITRD),
        (Action.WAIT, Why.NOT_REHEARSED), (Action.GIVE_UP, Why.NOT_REHEARSED), (Action.GIVE_UP, Why.REHEARSAL),
    }  # fmt: skip
    assert set(seen) == expected


BARE = Observation("m", "6.1", "1")
GOOD = {"installed": Artefact.GOOD}
OUT = GOOD | {"loaded": Loaded.NO}
DUE = GOOD | {"rehearsed": Rehearsed.DUE}
REFUSED = GOOD | {"rehearsed": Rehearsed.BAD, "attempt": Attempt(Kind.REFUSED, 1)}


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"installed": Artefact.GOOD}, Step(Action.DONE, Why.READY)),
        ({"installed": Artefact.GOOD, "loaded": Loaded.CURRENT}, Step(Action.DONE, Why.READY)),
        ({"installed": Artefact.GOOD, "loaded": Loaded.NO}, Step(Action.LOAD, Why.NOT_LOADED)),
        ({"installed": Artefact.GOOD, "loaded": Loaded.NO, "transaction": "apt"}, Step(Action.LOAD, Why.NOT_LOADED)),
        ({"installed": Artefact.GOOD, "loaded": Loaded.OUTDATED}, Step(Action.DONE, Why.OUTDATED)),
        ({"installed": Artefact.GOOD, "loaded": Loaded.FAULTY}, Step(Action.DONE, Why.FAULTY)),
        # Neither the image, nor the source, nor an old failure of another step is needed to load what is there.
        (OUT | {"attempt": Attempt(Kind.COMPILE, 1)}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"attempt": Attempt(Kind.SIGNING, 1, NOW + 99)}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"state": KernelState.NO_IMAGE}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"installed": Artefact.OTHER}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"installed": Artefact.UNKNOWN, "headers": Headers.MISSING}, Step(Action.LOAD, Why.NOT_LOADED)),
        (
            {"installed": Artefact.UNKNOWN, "headers": Headers.MISSING, "loaded": Loaded.CURRENT},
            Step(Action.GIVE_UP, Why.HEADERS_MISSING),
        ),
        ({"installed": Artefact.UNKNOWN}, Step(Action.STAGE, Why.WRONG)),
        (OUT | {"installed": Artefact.OTHER, "source": Source.MISSING}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"installed": Artefact.OTHER, "loaded": Loaded.CURRENT}, Step(Action.STAGE, Why.WRONG)),
        (OUT | {"installed": Artefact.OTHER, "attempt": Attempt(Kind.REFUSED, 1, loading=True)}, Step(Action.STAGE, Why.WRONG)),
        (
            OUT | {"installed": Artefact.BAD, "attempt": Attempt(Kind.MISMATCH, 1, NOW + 30, loading=True)},
            Step(Action.STAGE, Why.WRONG),
        ),
        (OUT | {"attempt": Attempt(Kind.REFUSED, 1, loading=True)}, Step(Action.GIVE_UP, Why.FAILED)),
        (
            OUT | {"attempt": Attempt(Kind.REFUSED, 1, loading=True), "state": KernelState.NO_IMAGE},
            Step(Action.DONE, Why.NO_IMAGE),
        ),
        (OUT | {"attempt": Attempt(Kind.INTERRUPTED, 1, loading=True)}, Step(Action.LOAD, Why.NOT_LOADED)),
        (OUT | {"attempt": Attempt(Kind.INTERRUPTED, 2, loading=True)}, Step(Action.GIVE_UP, Why.FAILED)),
        (OUT | {"attempt": Attempt(Kind.INTERRUPTED, 9)}, Step(Action.LOAD, Why.NOT_LOADED)),
        (DUE, Step(Action.REHEARSE, Why.NOT_REHEARSED)),
        (DUE | {"transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        (DUE | {"changed": NOW - 1}, Step(Action.WAIT, Why.SETTLING, NOW + 2)),
        (DUE | {"loaded": Loaded.NO}, Step(Action.LOAD, Why.NOT_LOADED)),
        (DUE | {"loaded": Loaded.OUTDATED}, Step(Action.REHEARSE, Why.NOT_REHEARSED)),
        (DUE | {"attempt": Attempt(Kind.REHEARSAL, 1, NOW + 5)}, Step(Action.WAIT, Why.NOT_REHEARSED, NOW + 5)),
        (DUE | {"attempt": Attempt(Kind.REHEARSAL, 1, NOW)}, Step(Action.REHEARSE, Why.NOT_REHEARSED)),
        (DUE | {"attempt": Attempt(Kind.REFUSED, 1)}, Step(Action.REHEARSE, Why.NOT_REHEARSED)),
        (DUE | {"attempt": Attempt(Kind.INTERRUPTED, 1), "own_run": "us"}, Step(Action.WAIT, Why.OWN_RUN)),
        (GOOD | {"rehearsed": Rehearsed.GOOD}, Step(Action.DONE, Why.READY)),
        (GOOD | {"rehearsed": Rehearsed.GOOD, "loaded": Loaded.NO}, Step(Action.LOAD, Why.NOT_LOADED)),
        (REFUSED, Step(Action.GIVE_UP, Why.REHEARSAL)),
        (REFUSED | {"loaded": Loaded.NO}, Step(Action.GIVE_UP, Why.REHEARSAL)),
        (REFUSED | {"headers": Headers.MISSING}, Step(Action.GIVE_UP, Why.REHEARSAL)),
        # Another source, other headers or another compiler: the attempt does not count any more.
        (REFUSED | {"attempt": None}, Step(Action.STAGE, Why.WRONG)),
        (REFUSED | {"attempt": None, "staged": Artefact.GOOD}, Step(Action.PUBLISH, Why.STAGED)),
        # What can be tried again is: a disk that was full says nothing of the module.
        (REFUSED | {"attempt": Attempt(Kind.DISK, 1, NOW + 5)}, Step(Action.WAIT, Why.BACKOFF, NOW + 5)),
        (REFUSED | {"attempt": Attempt(Kind.DISK, 1, NOW)}, Step(Action.STAGE, Why.WRONG)),
        (REFUSED | {"attempt": Attempt(Kind.TIMEOUT, 1, NOW)}, Step(Action.STAGE, Why.WRONG)),
        # What the machine denies may be what a package is about to change.
        ({"installed": Artefact.DENIED}, Step(Action.GIVE_UP, Why.DENIED)),
        ({"installed": Artefact.DENIED, "initrd": True}, Step(Action.GIVE_UP, Why.DENIED)),
        ({"installed": Artefact.DENIED, "transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"installed": Artefact.DENIED, "foreign_dkms": "dkms"}, Step(Action.WAIT, Why.FOREIGN_DKMS, NOW + POLL)),
        ({"installed": Artefact.DENIED, "own_run": "us"}, Step(Action.WAIT, Why.OWN_RUN)),
        (GOOD | {"rehearsed": Rehearsed.IMPOSSIBLE}, Step(Action.GIVE_UP, Why.NOT_REHEARSED)),
        ({"installed": Artefact.BAD}, Step(Action.STAGE, Why.WRONG)),
        ({"installed": Artefact.OTHER}, Step(Action.STAGE, Why.WRONG)),
        ({"staged": Artefact.GOOD}, Step(Action.PUBLISH, Why.STAGED)),
        ({"staged": Artefact.BAD}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"staged": Artefact.GOOD, "transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"staged": Artefact.GOOD, "foreign_dkms": "dkms"}, Step(Action.WAIT, Why.FOREIGN_DKMS, NOW + POLL)),
        ({"transaction": "apt"}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"foreign_dkms": "dkms"}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"foreign_dkms": "dkms", "removing": True}, Step(Action.WAIT, Why.FOREIGN_DKMS, NOW + POLL)),
        ({"transaction": "apt", "hook_builds": True}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"changed": NOW - 1}, Step(Action.WAIT, Why.SETTLING, NOW + 2)),
        ({"headers": Headers.MISSING}, Step(Action.GIVE_UP, Why.HEADERS_MISSING)),
        ({"headers": Headers.MISSING, "transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"headers": Headers.PARTIAL}, Step(Action.GIVE_UP, Why.HEADERS_PARTIAL)),
        ({"source": Source.MISSING}, Step(Action.GIVE_UP, Why.SOURCE_MISSING)),
        ({"source": Source.MISSING, "transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"source": Source.BROKEN}, Step(Action.GIVE_UP, Why.SOURCE_BROKEN)),
        ({"state": KernelState.NO_IMAGE}, Step(Action.DONE, Why.NO_IMAGE)),
        ({"state": KernelState.NO_IMAGE, "transaction": "apt"}, Step(Action.WAIT, Why.TRANSACTION, NOW + POLL)),
        ({"state": KernelState.NOT_A_KERNEL}, Step(Action.DONE, Why.NOT_A_KERNEL)),
        ({"own_run": "us"}, Step(Action.WAIT, Why.OWN_RUN)),
        ({"attempt": Attempt(Kind.COMPILE, 1)}, Step(Action.GIVE_UP, Why.FAILED)),
        ({"attempt": Attempt(Kind.DISK, 9, NOW + 5)}, Step(Action.WAIT, Why.BACKOFF, NOW + 5)),
        ({"attempt": Attempt(Kind.DISK, 9, NOW)}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"attempt": Attempt(Kind.TIMEOUT, 2, NOW)}, Step(Action.STAGE, Why.NOT_BUILT)),
        ({"attempt": Attempt(Kind.TIMEOUT, 3, NOW)}, Step(Action.GIVE_UP, Why.FAILED)),
        ({"attempt": Attempt(Kind.DURING_TRANSACTION, 1)}, Step(Action.STAGE, Why.NOT_BUILT)),
        (
            {"attempt": Attempt(Kind.DURING_TRANSACTION, 1), "transaction": "apt"},
            Step(Action.WAIT, Why.TRANSACTION, NOW + POLL),
        ),
    ],
)
def test_answers(changes: dict[str, object], answer: Step) -> None:
    """The rows of the decision table, one by one."""
    assert plan(BARE._replace(**changes), NOW, Limits()) == answer  # type: ignore[arg-type]


def test_headers_are_fetched_only_where_the_configuration_says_so() -> None:
    missing = BARE._replace(headers=Headers.MISSING)
    assert plan(missing, NOW, Limits(install_headers=True)).action is Action.FETCH_HEADERS
    assert plan(missing, NOW, Limits()).action is Action.GIVE_UP
    tried = missing._replace(attempt=Attempt(Kind.PACKAGES, 1, NOW + 7))
    assert plan(tried, NOW, Limits(install_headers=True)) == Step(Action.WAIT, Why.BACKOFF, NOW + 7)


@pytest.mark.parametrize("changes", [{"source": Source.REGISTERED, "headers": Headers.COMPLETE}, DUE])
def test_quiet_ends_with_the_last_instant_of_settle(changes: dict[str, Any]) -> None:
    """A timer that fires on time finds work; it would otherwise be set to now, again and again."""
    seen, limits = BARE._replace(**changes, changed=NOW), Limits(settle=5.0)
    assert plan(seen, NOW + 4.9, limits) == Step(Action.WAIT, Why.SETTLING, NOW + 5)
    assert plan(seen, NOW + 5.0, limits).action in WORK


def test_backoff_doubles_up_to_the_limit() -> None:
    limits = Limits(retry_first=30, retry_longest=3600)
    assert [backoff(n, limits) for n in (0, 1, 2, 3, 8, 10**6)] == [30, 30, 60, 120, 3600, 3600]


@pytest.mark.parametrize(
    ("loads", "reload", "answer"),
    [
        ((), False, Step(Action.LOAD, Why.NOT_LOADED)),
        ((NOW - 9,), False, Step(Action.GIVE_UP, Why.UNLOADED)),
        ((NOW - 9,), True, Step(Action.LOAD, Why.NOT_LOADED)),
        # Once, and four times again; five times again.
        ([NOW - n for n in (9, 8, 7, 6, 5)], True, Step(Action.LOAD, Why.NOT_LOADED)),
        ([NOW - n for n in (10, 9, 8, 7, 6, 5)], True, Step(Action.GIVE_UP, Why.UNLOADED, NOW - 9 + LOADS_WITHIN)),
        ([NOW - n for n in (2 * LOADS_WITHIN, LOADS_WITHIN, 8, 7, 6, 5)], True, Step(Action.LOAD, Why.NOT_LOADED)),
        ([NOW - n for n in (11, 10, 9, 8, 7, 6, 5)], True, Step(Action.GIVE_UP, Why.UNLOADED, NOW - 9 + LOADS_WITHIN)),
    ],
)
def test_what_somebody_unloads(loads: Sequence[float], reload: bool, answer: Step) -> None:
    seen = BARE._replace(installed=Artefact.GOOD, loaded=Loaded.NO, loads=tuple(loads))
    assert plan(seen, NOW, Limits(reload=reload)) == answer


@pytest.mark.parametrize(("attempt", "step"), [
    (None, Step(Action.MAKE_INITRD, Why.INITRD)),
    (Attempt(Kind.INITRD, 1, NOW + 7), Step(Action.WAIT, Why.BACKOFF, NOW + 7)),
    (Attempt(Kind.INITRD, 2, NOW), Step(Action.MAKE_INITRD, Why.INITRD)),
    (Attempt(Kind.INITRD, 3), Step(Action.GIVE_UP, Why.DENIED)),
    (Attempt(Kind.COMPILE, 1), Step(Action.GIVE_UP, Why.DENIED)),
])  # fmt: skip
def test_an_initrd_that_the_configuration_lets_us_make(attempt: Attempt | None, step: Step) -> None:
    """Whatever failed, the verdict names the initrd; what does not help three times is left to the administrator."""
    denied = BARE._replace(installed=Artefact.DENIED, attempt=attempt)
    limits = Limits(make_initrds=True)
    assert plan(denied._replace(initrd=True), NOW, limits) == step
    assert plan(denied._replace(initrd=True, transaction="apt"), NOW, limits).why is Why.TRANSACTION
    assert plan(denied, NOW, limits) == Step(Action.GIVE_UP, Why.DENIED), "something else is in the way"
