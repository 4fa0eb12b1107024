# SPDX-License-Identifier: GPL-2.0-or-later
"""The one decision of the program: what is the next step for this package on this kernel?

Rules:

1. `plan` is pure and total: every Observation has exactly one Step, and nothing but its arguments decides it.
2. It remembers nothing. After a step, or a crash in the middle of one, the machine is observed again and `plan` is asked
   again; there is no recovery code because there is nothing to recover.
3. Nothing of ours runs while another run of ours does (`own_run`).
4. The shared trees (/var/lib/dkms, /lib/modules) are changed only by PUBLISH, and PUBLISH is never answered while a package
   transaction is open or somebody else's dkms runs: dkms has no lock, and two overlapping runs of one module fail.
5. Staging is private and may run beside both, unless the distribution's own hook is about to build the same module, or that
   dkms takes packages out: until it has ended, what it removes looks as if it were to be built.
6. What is good is left alone, whoever built it. What is wrong is replaced, whoever built it.
7. If a kernel refuses a module in the rehearsal, the module is wrong, whatever the analysis says. The same source is not built
   again for that. No rehearsal runs while a package transaction is open: the files may change under it.
8. A failure that waiting cannot heal is final until its fingerprint changes. Any other is tried again, ever more slowly.
9. The running kernel is given a file that is there before a better one is made, also if not everything can be known of it: the
   kernel knows. A failed loading keeps nobody from building, nor a failed build from loading. A loading that brought the
   machine down twice is not tried a third time.
"""

from __future__ import annotations

from knetstatd.core.model import (
    Action,
    Artefact,
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

# How often to look at things that send no event: locks of the package manager, other people's dkms. Our own run ends with one:
# it closes its lock, and may take an hour. Half of it is the mean delay between the end of a transaction and our noticing.
POLL = 0.5
# How often in how many seconds a module is loaded again; what takes it out again and again is not outdone.
LOADS, LOADS_WITHIN = 5, 3600.0
# So many loadings in a row that the machine, or at least the builder, did not survive are no accident.
CRASHES = 2


def backoff(count: int, limits: Limits) -> float:
    """Seconds to wait after the `count`-th failure (1, 2, …): doubles from retry_first up to retry_longest.

    No jitter: each instance of a fleet builds on its own, nothing central is asked.
    """
    return min(limits.retry_longest, limits.retry_first * 2.0 ** min(max(count, 1) - 1, 30))


def plan(seen: Observation, now: float, limits: Limits) -> Step:
    """The next step. now: seconds of CLOCK_BOOTTIME, the clock of every time in `seen`."""
    load = _load(seen, now, limits)
    if seen.state is not KernelState.BOOTABLE:
        if load and load.action is Action.LOAD:  # it runs, wherever its image is
            return load
        if seen.transaction:
            return Step(Action.WAIT, Why.TRANSACTION, now + POLL)
        return Step(Action.DONE, Why.NO_IMAGE if seen.state is KernelState.NO_IMAGE else Why.NOT_A_KERNEL)
    # A run keeps an attempt until it has ended well: a module that is there, but not yet on the disk, is not called ready.
    if seen.own_run and (seen.attempt or seen.installed is not Artefact.GOOD or seen.rehearsed is Rehearsed.BAD):
        return Step(Action.WAIT, Why.OWN_RUN)
    if load and (load.action is Action.LOAD or seen.installed is Artefact.GOOD):
        return load
    if seen.installed is Artefact.GOOD and seen.rehearsed is not Rehearsed.BAD:
        return _good(seen, now, limits)
    if seen.rehearsed is Rehearsed.BAD and seen.attempt and seen.attempt.kind.retry is Retry.NEVER:
        return Step(Action.GIVE_UP, Why.REHEARSAL)
    if seen.installed is Artefact.DENIED:  # by what no new build changes
        return _busy(seen, now) or _denied(seen, now, limits)
    if seen.source is not Source.REGISTERED:
        if seen.transaction:
            return Step(Action.WAIT, Why.TRANSACTION, now + POLL)
        return Step(Action.GIVE_UP, Why.SOURCE_MISSING if seen.source is Source.MISSING else Why.SOURCE_BROKEN)
    if now < seen.changed + limits.settle:
        return Step(Action.WAIT, Why.SETTLING, seen.changed + limits.settle)
    if seen.headers is not Headers.COMPLETE:
        return _headers(seen, now, limits)
    if held := _held_back(seen, now):
        return held
    if seen.staged is Artefact.GOOD:
        return _busy(seen, now) or Step(Action.PUBLISH, Why.STAGED)
    if (seen.hook_builds or seen.removing) and (busy := _busy(seen, now)):
        return busy
    return Step(Action.STAGE, Why.NOT_BUILT if seen.installed is Artefact.NONE else Why.WRONG)


def _busy(seen: Observation, now: float) -> Step | None:
    """A wait while somebody may change the shared trees."""
    if seen.own_run:
        return Step(Action.WAIT, Why.OWN_RUN)
    if seen.transaction:
        return Step(Action.WAIT, Why.TRANSACTION, now + POLL)
    if seen.foreign_dkms:
        return Step(Action.WAIT, Why.FOREIGN_DKMS, now + POLL)
    return None


def _held_back(seen: Observation, now: float, *, loading: bool = False) -> Step | None:
    """What the failures so far forbid; None if the next attempt may start. loading: by the running kernel."""
    attempt = seen.attempt
    if attempt is None or attempt.loading is not loading:
        return None
    match attempt.kind.retry:
        case Retry.NEVER:
            return Step(Action.GIVE_UP, Why.FAILED)
        case Retry.TWICE if attempt.times > 2:
            return Step(Action.GIVE_UP, Why.FAILED)
        case Retry.AFTER_TRANSACTION:
            return Step(Action.WAIT, Why.TRANSACTION, now + POLL) if seen.transaction else None
    return Step(Action.WAIT, Why.BACKOFF, attempt.not_before) if now < attempt.not_before else None


def _denied(seen: Observation, now: float, limits: Limits) -> Step:
    """What the machine itself is in the way of; of that only an initrd may be ours to make."""
    if not (seen.initrd and limits.make_initrds):
        return Step(Action.GIVE_UP, Why.DENIED)
    held = _held_back(seen, now)
    if held and held.action is Action.GIVE_UP:  # the verdict names what is in the way, whatever failed before
        return Step(Action.GIVE_UP, Why.DENIED)
    return held or Step(Action.MAKE_INITRD, Why.INITRD)


def _headers(seen: Observation, now: float, limits: Limits) -> Step:
    if busy := _busy(seen, now):
        return busy
    if limits.install_headers:
        return _held_back(seen, now) or Step(Action.FETCH_HEADERS, Why.HEADERS_MISSING)
    return Step(Action.GIVE_UP, Why.HEADERS_MISSING if seen.headers is Headers.MISSING else Why.HEADERS_PARTIAL)


def _good(seen: Observation, now: float, limits: Limits) -> Step:
    """The file is good; what does a kernel say of it, and is it what the running one has?"""
    if seen.rehearsed is Rehearsed.IMPOSSIBLE:
        return Step(Action.GIVE_UP, Why.NOT_REHEARSED)
    if seen.rehearsed is Rehearsed.DUE:
        return _rehearse(seen, now, limits)
    match seen.loaded:
        case Loaded.OUTDATED:
            return Step(Action.DONE, Why.OUTDATED)
        case Loaded.FAULTY:  # what is loaded is what was proven: another build would be the same
            return Step(Action.DONE, Why.FAULTY)
    return Step(Action.DONE, Why.READY)


def _load(seen: Observation, now: float, limits: Limits) -> Step | None:
    """Whether the running kernel is to be given what is installed; None if there is nothing to give, or it has it."""
    there = seen.installed in (Artefact.GOOD, Artefact.OTHER, Artefact.UNKNOWN) and seen.rehearsed is not Rehearsed.BAD
    if seen.loaded is not Loaded.NO or not there:
        return None
    # Changes no tree, so it waits for nobody else's work: a package manager may take an hour.
    if seen.own_run:
        return Step(Action.WAIT, Why.OWN_RUN)
    if seen.attempt and seen.attempt.loading and seen.attempt.kind is Kind.INTERRUPTED and seen.attempt.times >= CRASHES:
        return Step(Action.GIVE_UP, Why.FAILED)
    held = _held_back(seen, now, loading=True)
    return held or _unloaded(seen, now, limits) or Step(Action.LOAD, Why.NOT_LOADED)


def _unloaded(seen: Observation, now: float, limits: Limits) -> Step | None:
    """What was loaded in this boot and is not any more was unloaded by somebody; None if it is loaded again."""
    if not limits.reload:
        return Step(Action.GIVE_UP, Why.UNLOADED) if seen.loads else None
    lately = [at for at in sorted(seen.loads)[1:] if now - at < LOADS_WITHIN]  # the first was none after an unloading
    return Step(Action.GIVE_UP, Why.UNLOADED, lately[-LOADS] + LOADS_WITHIN) if len(lately) >= LOADS else None


def _rehearse(seen: Observation, now: float, limits: Limits) -> Step:
    if now < seen.changed + limits.settle:
        return Step(Action.WAIT, Why.SETTLING, seen.changed + limits.settle)
    if busy := _busy(seen, now):
        return busy
    # What other steps failed at says nothing of this one, but for how long to wait.
    if seen.attempt and seen.attempt.kind.retry is Retry.BACKOFF and now < seen.attempt.not_before:
        return Step(Action.WAIT, Why.NOT_REHEARSED, seen.attempt.not_before)
    return Step(Action.REHEARSE, Why.NOT_REHEARSED)
