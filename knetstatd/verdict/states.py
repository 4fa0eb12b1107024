# SPDX-License-Identifier: GPL-2.0-or-later
"""The states in which a package can be on a kernel, and the one table that chooses them.

Rules:

1. Each answer of the planner, (action, why), has one row: the state, the sentence, the cure and the journal's event.
2. A row has a state for each judgement of the installed module: good, other, unknown, bad. So `state` and `ready` agree.
3. A state is a token for scripts. Sentences are for people; no decision hangs on one.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import planner
from knetstatd.core.events import Event
from knetstatd.core.model import ELSEWHERE, UNMADE, Action, Artefact, Kind, Loaded, Rehearsed, Result, Why
from knetstatd.machine import kernels, loaded_modules
from knetstatd.state import attempts, rehearsal_results

if TYPE_CHECKING:
    from collections.abc import Callable

    from knetstatd.core.model import Attempt, Check, Observation, Step
    from knetstatd.verdict.observe import Machine, Seen


class State(enum.StrEnum):
    """What a package is on a kernel, as JSON, metrics and the manual call it."""

    READY = "ready"
    READY_NOT_LOADED = "ready-not-loaded"
    READY_OUTDATED = "ready-outdated"
    READY_NOT_REHEARSED = "ready-not-rehearsed"
    LOADED_OUTDATED = "loaded-outdated"
    BUILDING = "building"
    SETTLING = "settling"
    WAITING_FOR_APT = "waiting-for-apt"
    WAITING_FOR_DKMS = "waiting-for-dkms"
    NOT_BUILT = "not-built"
    NEEDS_REBUILD = "needs-rebuild"
    BUILT_NOT_INSTALLED = "built-not-installed"
    HEADERS_MISSING = "headers-missing"
    SOURCE_MISSING = "source-missing"
    SOURCE_BROKEN = "source-broken"
    BLOCKED = "blocked"
    FAILED = "failed"
    EXCLUDED = "excluded"
    NOT_REHEARSED = "not-rehearsed"
    REHEARSAL_FAILED = "rehearsal-failed"
    LOADED_FAULTY = "loaded-faulty"
    KERNEL_HALF_CONFIGURED = "kernel-half-configured"
    UNPROVEN = "unproven"
    NO_BOOT_IMAGE = "no-boot-image"
    NOT_A_KERNEL = "not-a-kernel"

    @property
    def ready(self) -> bool | None:
        """Whether the module will load after a reboot into the kernel; None: the state says what is under way, not that."""
        return None if self in _UNDER_WAY else self in _READY

    @property
    def known(self) -> bool:
        """False if nothing stands against the module, and not everything can be known."""
        return self not in _UNKNOWN

    @property
    def documentation(self) -> str:
        """The section of the manual's page about states."""
        return f"troubleshooting.md#{self}"


_READY = {State.READY, State.READY_NOT_LOADED, State.READY_OUTDATED, State.READY_NOT_REHEARSED, State.LOADED_OUTDATED}
_UNDER_WAY = {State.BUILDING, State.SETTLING, State.WAITING_FOR_APT, State.WAITING_FOR_DKMS}
_UNKNOWN = {State.UNPROVEN, State.NO_BOOT_IMAGE, State.NOT_A_KERNEL}

# Why of the one state that is dpkg's.
HALF_CONFIGURED = "half-configured"


class Judgement(enum.Enum):
    """What the next boot would make of the installed module."""

    GOOD = "it loads"
    OTHER = "it loads, and was built for another release or from another source"
    UNKNOWN = "nothing stands against it, and not everything can be known"
    BAD = "it does not load, does not work, or there is none"

    @property
    def ready(self) -> bool:
        """Whether the module will load."""
        return self in (Judgement.GOOD, Judgement.OTHER)


class Case(NamedTuple):
    """What a row makes its sentence from."""

    machine: Machine
    seen: Seen
    step: Step

    @property
    def o(self) -> Observation:
        """The observation."""
        return self.seen.observation

    @property
    def attempt(self) -> Attempt:
        """The failed attempt of which the row speaks."""
        assert self.o.attempt is not None, f"{self.step} is an answer to an attempt"
        return self.o.attempt

    @property
    def against(self) -> Check | None:
        """The check to name: of the modules that do not load first, and of the machine if that is in the way."""
        proofs = sorted((proof for _, proof in self.seen.installed), key=lambda proof: proof.loads)
        files = (
            frozenset(c.name for p in proofs for c in p.checks) - ELSEWHERE - {UNMADE}
            if self.step.why is Why.DENIED
            else frozenset()
        )
        return next((check for check in (proof.first(files) for proof in proofs) if check is not None), None)

    @property
    def guarded(self) -> bool:
        """Whether the daemon acts for this kernel; for another one only somebody by hand does."""
        return self.o.kernel in self.machine.wanted()

    @property
    def fails(self) -> bool:
        """Whether a check of an installed module has failed."""
        return any(check.result is Result.FAIL for _, proof in self.seen.installed for check in proof.checks)

    @property
    def soon(self) -> str:
        """When the next attempt is due."""
        seconds = max(0, int(self.attempt.not_before - attempts.now()))
        return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min"


class Row(NamedTuple):
    """What follows from one answer of the planner.

    good, other, unknown, bad: the state for each judgement.  progress: something is under way that may change it.
    event: the journal's, None if the builder tells of it or nobody needs to know.
    """

    good: State
    other: State
    unknown: State
    bad: State
    reason: Callable[[Case], str]
    fix: Callable[[Case], str]
    event: Event | None = None
    progress: bool = False

    def state(self, judgement: Judgement) -> State:
        """The state for a judgement."""
        match judgement:
            case Judgement.GOOD:
                return self.good
            case Judgement.OTHER:
                return self.other
            case Judgement.UNKNOWN:
                return self.unknown
        return self.bad


def judgement(case: Case) -> Judgement:
    """What the next boot would make of the installed module. What a kernel has said counts more than the analysis."""
    o = case.o
    unasked = case.machine.config.rehearse == "require" and o.rehearsed in (Rehearsed.DUE, Rehearsed.IMPOSSIBLE)
    refused = case.step.why is Why.FAILED and o.attempt is not None and o.attempt.loading and o.attempt.kind is not Kind.DENIED
    if o.installed is Artefact.UNKNOWN or (o.installed is Artefact.DENIED and not case.fails):
        return Judgement.UNKNOWN
    if unasked or refused or o.loaded is Loaded.FAULTY or o.rehearsed is Rehearsed.BAD:
        return Judgement.BAD
    if o.installed is Artefact.GOOD:
        return Judgement.GOOD
    return Judgement.OTHER if o.installed is Artefact.OTHER else Judgement.BAD


def row(case: Case) -> Row:
    """The row for an answer of the planner."""
    if case.step.why is Why.FAILED and case.o.attempt is not None and case.o.attempt.kind is Kind.EXCLUDED:
        return _EXCLUDED
    return TABLE[case.step.action, case.step.why]


# -- the sentences, and the commands that help ----------------------------------------------------------------------------


def _nothing(case: Case) -> str:
    return ""


def _build(case: Case) -> str:
    return f"knetstatctl build {case.o.kernel}"


def _rehearse(case: Case) -> str:
    return f"knetstatctl rehearse {case.o.kernel}"


def _reload(case: Case) -> str:
    names = case.seen.remark
    return f"modprobe -r {names} && modprobe {f'-a {names}' if ' ' in names else names}"


def _blocked(case: Case) -> str:
    return (case.against.reason or case.against.found) if case.against else "the machine does not let it be loaded"


def _unloaded(case: Case) -> str:
    if not case.machine.limits.reload:
        return "somebody unloaded it, and the configuration says to leave it out"
    return f"somebody unloaded it {planner.LOADS} times within an hour; the daemon does not load it again for now"


def _will(so: str, then: str) -> Callable[[Case], str]:
    """What is so, and what the daemon will do about it, if it guards the kernel."""
    return lambda case: f"{so}, and {then if case.guarded else 'the daemon does not guard this kernel'}"


def _wrong(case: Case) -> str:
    why = case.against.reason or case.against.found if case.against else ""
    why = f"in the rehearsal, {case.seen.answer.reason}" if case.seen.answer is not None else why
    so = "an outdated module is installed" if case.o.installed is Artefact.OTHER else "the installed module is wrong"
    return _will(so, "will be built again")(case) + (f": {why}" if why else "")


def _headers_fix(case: Case) -> str:
    how = kernels.headers_reinstall if case.step.why is Why.HEADERS_PARTIAL else kernels.headers_fix
    return how(case.machine.root, case.o.kernel)


def _waiting(state: State, reason: Callable[[Case], str], event: Event | None = None) -> Row:
    return Row(state, state, state, state, reason, _nothing, event, progress=True)


def _always(state: State, reason: Callable[[Case], str], fix: Callable[[Case], str], event: Event | None = None) -> Row:
    return Row(state, state, state, state, reason, fix, event)


def _against(
    state: State, reason: Callable[[Case], str], fix: Callable[[Case], str], event: Event | None = None, *,
    unknown: State = State.UNPROVEN, good: State = State.READY_OUTDATED, progress: bool = False,
) -> Row:  # fmt: skip
    """A step that cannot be done, or is about to be, while a module may be there that loads all the same."""
    return Row(good, State.READY_OUTDATED, unknown, state, reason, fix, event, progress)


_DENIED = Row(
    State.BLOCKED, State.BLOCKED, State.UNPROVEN, State.BLOCKED, _blocked, lambda c: c.against.fix if c.against else "",
    Event.GAVE_UP,
)  # fmt: skip
_HEADERS = _against(State.HEADERS_MISSING, lambda c: c.seen.headers.reason, _headers_fix, Event.HEADERS_MISSING)
TABLE: dict[tuple[Action, Why], Row] = {
    (Action.DONE, Why.READY): Row(
        State.READY, State.READY_OUTDATED, State.UNPROVEN, State.NOT_REHEARSED, _nothing, _nothing, Event.READY
    ),
    (Action.DONE, Why.OUTDATED): Row(
        State.LOADED_OUTDATED, State.LOADED_OUTDATED, State.UNPROVEN, State.NOT_REHEARSED,
        lambda c: "the running kernel has another build loaded than the installed one; reload it when nothing uses it",
        _reload, Event.OUTDATED,
    ),
    (Action.DONE, Why.FAULTY): _always(
        State.LOADED_FAULTY, lambda c: f"the running kernel has it loaded, and it does not work: {c.seen.remark}",
        lambda c: f"modprobe -r {loaded_modules.PROBED} && modprobe {loaded_modules.PROBED}", Event.FAULTY,
    ),
    (Action.DONE, Why.NO_IMAGE): _always(
        State.NO_BOOT_IMAGE, lambda c: f"{c.o.kernel} has modules but no boot image",
        lambda c: "Reinstall its image package, or remove the directory",
    ),
    (Action.DONE, Why.NOT_A_KERNEL): _always(
        State.NOT_A_KERNEL, lambda c: f"/lib/modules/{c.o.kernel} holds headers or leftovers, not a kernel", _nothing
    ),
    (Action.GIVE_UP, Why.DENIED): _DENIED,
    (Action.MAKE_INITRD, Why.INITRD): _DENIED._replace(event=None, progress=True),
    (Action.GIVE_UP, Why.REHEARSAL): _always(
        State.REHEARSAL_FAILED, lambda c: c.seen.answer.reason if c.seen.answer else c.attempt.reason,
        lambda c: c.seen.answer.fix if c.seen.answer else c.attempt.fix, Event.REHEARSAL_FAILED,
    ),
    (Action.GIVE_UP, Why.NOT_REHEARSED): _always(
        State.NOT_REHEARSED, lambda c: f"the configuration requires a rehearsal, and {c.machine.no_rehearsal}",
        lambda c: rehearsal_results.FIX, Event.NOT_REHEARSED,
    ),
    (Action.GIVE_UP, Why.UNLOADED): Row(
        State.READY_NOT_LOADED, State.READY_NOT_LOADED, State.UNPROVEN, State.NOT_REHEARSED, _unloaded, _build, Event.UNLOADED
    ),
    (Action.GIVE_UP, Why.SOURCE_MISSING): _against(
        State.SOURCE_MISSING, lambda c: c.seen.source_reason, lambda c: c.seen.source_fix, Event.SOURCE_MISSING
    ),
    (Action.GIVE_UP, Why.SOURCE_BROKEN): _against(
        State.SOURCE_BROKEN, lambda c: c.seen.source_reason, lambda c: c.seen.source_fix, Event.SOURCE_MISSING
    ),
    (Action.GIVE_UP, Why.HEADERS_MISSING): _HEADERS,
    (Action.GIVE_UP, Why.HEADERS_PARTIAL): _HEADERS,
    (Action.GIVE_UP, Why.FAILED): _against(
        State.FAILED, lambda c: c.attempt.reason, lambda c: c.attempt.fix, Event.GAVE_UP,
        unknown=State.FAILED, good=State.READY_NOT_LOADED,
    ),
    (Action.WAIT, Why.BACKOFF): _against(
        State.FAILED, lambda c: f"{c.attempt.reason}; attempt {c.attempt.times} failed, the next is due in {c.soon}",
        lambda c: c.attempt.fix, Event.FAILED, unknown=State.FAILED, good=State.READY_NOT_LOADED,
    ),
    (Action.WAIT, Why.NOT_REHEARSED): Row(
        State.READY, State.READY, State.UNPROVEN, State.NOT_REHEARSED,
        lambda c: f"{c.attempt.reason}; the next rehearsal is due in {c.soon}", _rehearse, Event.READY,
    ),
    (Action.WAIT, Why.OWN_RUN): _waiting(State.BUILDING, lambda c: "a build is under way, of this or of another package"),
    (Action.WAIT, Why.SETTLING): _waiting(
        State.SETTLING, lambda c: "the daemon waits until the kernel's files have been quiet for a moment"
    ),
    (Action.WAIT, Why.TRANSACTION): _waiting(
        State.WAITING_FOR_APT,
        lambda c: ": ".join(filter(None, ("the daemon waits for the end of a package transaction", c.o.transaction))),
        Event.WAITING,
    ),
    (Action.WAIT, Why.FOREIGN_DKMS): _waiting(
        State.WAITING_FOR_DKMS, lambda c: f"the daemon waits for another dkms to end: {c.o.foreign_dkms}", Event.WAITING
    ),
    (Action.STAGE, Why.NOT_BUILT): _against(
        State.NOT_BUILT, _will("it is not built yet", "will be"), _build, unknown=State.NOT_BUILT, progress=True
    ),
    (Action.STAGE, Why.WRONG): _against(State.NEEDS_REBUILD, _wrong, _build, unknown=State.NEEDS_REBUILD, progress=True),
    (Action.PUBLISH, Why.STAGED): _against(
        State.BUILT_NOT_INSTALLED, _will("it is built and proven", "will be installed"), _build,
        unknown=State.BUILT_NOT_INSTALLED, progress=True,
    ),
    (Action.REHEARSE, Why.NOT_REHEARSED): Row(
        State.READY_NOT_REHEARSED, State.READY_NOT_REHEARSED, State.UNPROVEN, State.NOT_REHEARSED,
        lambda c: "this kernel will be started in a throwaway machine, and asked to load the module", _rehearse, progress=True,
    ),
    (Action.LOAD, Why.NOT_LOADED): Row(
        State.READY_NOT_LOADED, State.READY_NOT_LOADED, State.UNPROVEN, State.NOT_REHEARSED,
        lambda c: "it is installed, and will be loaded", _build, progress=True,
    ),
    (Action.FETCH_HEADERS, Why.HEADERS_MISSING): _against(
        State.HEADERS_MISSING, _will("the kernel's headers are missing", "will be installed"), _build, progress=True
    ),
}  # fmt: skip

_EXCLUDED = TABLE[Action.GIVE_UP, Why.FAILED]._replace(bad=State.EXCLUDED)
