# SPDX-License-Identifier: GPL-2.0-or-later
"""The values that the layers hand to each other: frozen, without behaviour, without a clock."""

from __future__ import annotations

import enum
from typing import NamedTuple

from knetstatd.core.kinds import Kind as Kind  # noqa: TC001 (others take them from here)
from knetstatd.core.kinds import Retry as Retry


class Result(enum.StrEnum):
    """The answer of one check. UNKNOWN is never taken for PASS."""

    PASS = "pass"
    FAIL = "fail"
    WARN = "warn"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not-applicable"


class Check(NamedTuple):
    """One fact about a module file and a kernel: what was expected, what was found, why it matters, what to do."""

    name: str
    result: Result
    expected: str = ""
    found: str = ""
    reason: str = ""
    fix: str = ""


# Checks of the machine, whose answer no new build of the module changes; those that a file passes only once it is published;
# and those that decide nothing while they are unknown.
ELSEWHERE = frozenset({"key", "modprobe", "winner", "initrd", "depends", "headers", "image"})
UNPUBLISHED = (ELSEWHERE - {"image"}) | {"signature", "compression"}
REMARKS = frozenset({"compiler", "origin"})
UNMADE = "proof"  # the one check of a module whose proof could not be made; that is no ground to build it
# Those that say whether it is the right file, in the right places, and nothing of whether a kernel takes this one.
_PLACEMENT = frozenset({"contents", "winner", "initrd", "headers"})


class Proof(NamedTuple):
    """The answer to "will this file load on that kernel?", with what it rests on.

    path: the file that was checked, "" if there is none.  loads: no check failed, and none that decides is unknown.
    srcversion, build_id: the file's, as /sys/module shows those of a loaded one; "" if it has none.
    needed: of an installed module, the files that modprobe inserts before it, in that order.  module: the kernel's name for it.
    """

    path: str
    checks: tuple[Check, ...]
    srcversion: str = ""
    needed: tuple[str, ...] = ()
    build_id: str = ""
    module: str = ""

    @property
    def loads(self) -> bool:
        """Whether nothing stands against loading it."""
        return self.holds()

    @property
    def is_installed(self) -> bool:
        """Whether there is a file, or at least something else than a file is missing."""
        return bool(self.path) or any(check.name != "file" for check in self.checks)

    @property
    def fails(self) -> bool:
        """Whether something does, and not only that something cannot be known."""
        return not self.path or any(c.result is Result.FAIL for c in self.checks)

    @property
    def is_refused(self) -> bool:
        """Whether there is no file, or the kernel or modprobe refuses it: a wrong file may load all the same."""
        return not self.path or any(c.result is Result.FAIL and c.name not in _PLACEMENT for c in self.checks)

    @property
    def is_current(self) -> bool:
        """Whether it was made for this very kernel, from the source that is registered."""
        return all(c.result is not Result.WARN for c in self.checks if c.name in ("release", "origin"))

    def holds(self, but: frozenset[str] = frozenset(), *, linked: bool = False) -> bool:
        """Whether nothing stands against it, apart from the checks `but`. linked: it is fresh from its linker, form and all."""
        remarks = REMARKS | {"form", "btf"} if linked else REMARKS
        bad = (c for c in self.checks if c.result in (Result.FAIL, Result.UNKNOWN) and c.name not in but)
        return bool(self.path) and all(c.result is Result.UNKNOWN and c.name in remarks for c in bad)

    @property
    def worst(self) -> Check | None:
        """The check to name first: the first failure, else the first unknown, else the first warning."""
        return self.first()

    def first(self, but: frozenset[str] = frozenset()) -> Check | None:
        """The same, apart from the checks `but`."""
        order = (Result.FAIL, Result.UNKNOWN, Result.WARN)
        against = (c for c in self.checks if c.result in order and c.name not in but)
        return min(against, key=lambda c: order.index(c.result), default=None)


class KernelState(enum.StrEnum):
    """What a directory in /lib/modules is."""

    BOOTABLE = "bootable"
    NO_IMAGE = "no boot image"
    NOT_A_KERNEL = "headers or an orphan"


class Headers(enum.StrEnum):
    """Whether a module can be compiled for a kernel."""

    COMPLETE = "complete"
    PARTIAL = "incomplete"
    MISSING = "missing"


class Source(enum.StrEnum):
    """Whether DKMS knows the module's source."""

    REGISTERED = "registered"
    MISSING = "not registered"
    BROKEN = "broken"


class Artefact(enum.StrEnum):
    """A module's files for one kernel, by what `verify` says of them, whoever built them."""

    NONE = "none"
    GOOD = "good"
    OTHER = "loads, but is another kernel's or not of the registered source"
    DENIED = "good, but the machine does not let it be loaded"
    UNKNOWN = "nothing stands against it, and not everything can be known"
    BAD = "bad"


class Outcome(enum.StrEnum):
    """What a kernel said in a rehearsal. UNDECIDED: it could not be asked, or its answer is none."""

    LOADED = "loaded"
    DECLINED = "linked, its init function declined"
    REFUSED = "refused"
    NOT_WORKING = "loaded, does not work"
    PANIC = "panic"
    HANG = "hang"
    UNDECIDED = "undecided"

    @property
    def good(self) -> bool:
        """Whether nothing was found against the module."""
        return self in (Outcome.LOADED, Outcome.DECLINED)


class Answer(NamedTuple):
    """The outcome of one rehearsal of a DKMS package's modules on a kernel.

    check: the check of `verify` that judges the same thing, or what there is no check for: "init", "probe", "panic", "hang".
    words: the kernel's own.  remark: what the rehearsal left open.  machine: "KVM" or "emulation".
    seconds: it took.  when: seconds since the epoch, for display only.
    """

    outcome: Outcome
    check: str = ""
    reason: str = ""
    fix: str = ""
    words: tuple[str, ...] = ()
    remark: str = ""
    machine: str = ""
    seconds: float = 0.0
    when: float = 0.0


class Rehearsed(enum.StrEnum):
    """What is known of a rehearsal of the installed modules. NOT_DUE: nobody asks for one, or it cannot be had here and need
    not; IMPOSSIBLE: the configuration requires one and it cannot be had."""

    NOT_DUE = "not due"
    IMPOSSIBLE = "impossible"
    DUE = "due"
    GOOD = "good"
    BAD = "bad"


class Loaded(enum.StrEnum):
    """The module in the running kernel.

    NOT_HERE: the observed kernel does not run, or it cannot load modules.  FAULTY: current, and its probe fails.
    """

    NOT_HERE = "not here"
    NO = "no"
    CURRENT = "current"
    OUTDATED = "outdated"
    FAULTY = "faulty"


class Attempt(NamedTuple):
    """What is remembered of failed attempts with one fingerprint of source, headers and compiler.

    times: how often in a row.  log: make's, "" for none.  loading: it was the running kernel that was to take the module.
    not_before: seconds of CLOCK_BOOTTIME; 0 after a reboot.  when: seconds since the epoch, for display only.
    """

    kind: Kind
    times: int = 1
    not_before: float = 0.0
    reason: str = ""
    fix: str = ""
    evidence: tuple[str, ...] = ()
    when: float = 0.0
    log: str = ""
    loading: bool = False


class Observation(NamedTuple):
    """All that the planner knows about one module and one kernel, read from the machine at one moment.

    initrd: a new initrd is all that the installed modules need.
    changed: when something in the kernel's directory last moved, in seconds of CLOCK_BOOTTIME (0: long ago).
    transaction, foreign_dkms, own_run: who is at work, "" for nobody.  removing: that dkms takes packages out.
    attempt: only one whose fingerprint is today's; else None.
    loads: when the modules were loaded in this boot, seconds of CLOCK_BOOTTIME; only if they are wanted and not loaded.
    """

    package: str
    kernel: str
    version: str = ""
    state: KernelState = KernelState.BOOTABLE
    source: Source = Source.REGISTERED
    headers: Headers = Headers.COMPLETE
    installed: Artefact = Artefact.NONE
    staged: Artefact = Artefact.NONE
    loaded: Loaded = Loaded.NOT_HERE
    rehearsed: Rehearsed = Rehearsed.NOT_DUE
    hook_builds: bool = False
    transaction: str = ""
    foreign_dkms: str = ""
    own_run: str = ""
    changed: float = 0.0
    attempt: Attempt | None = None
    loads: tuple[float, ...] = ()
    initrd: bool = False
    removing: bool = False


class Limits(NamedTuple):
    """What the configuration says to the planner; seconds. reload: whether what somebody has unloaded is loaded again."""

    settle: float = 3.0
    retry_first: float = 30.0
    retry_longest: float = 3600.0
    install_headers: bool = False
    reload: bool = True
    make_initrds: bool = False


class Action(enum.StrEnum):
    """The one next step for a module and a kernel."""

    DONE = "done"
    WAIT = "wait"
    FETCH_HEADERS = "headers"
    STAGE = "stage"
    PUBLISH = "publish"
    MAKE_INITRD = "initrd"
    REHEARSE = "rehearse"
    LOAD = "load"
    GIVE_UP = "give-up"


class Why(enum.StrEnum):
    """The reason of a step, one word that scripts can rely on."""

    READY = "ready"
    NOT_A_KERNEL = "not-a-kernel"
    NO_IMAGE = "no-image"
    OWN_RUN = "building"
    SETTLING = "settling"
    TRANSACTION = "transaction"
    FOREIGN_DKMS = "foreign-dkms"
    BACKOFF = "backoff"
    SOURCE_MISSING = "source-missing"
    SOURCE_BROKEN = "source-broken"
    HEADERS_MISSING = "headers-missing"
    HEADERS_PARTIAL = "headers-incomplete"
    NOT_BUILT = "not-built"
    WRONG = "wrong-module"
    STAGED = "staged"
    NOT_REHEARSED = "not-rehearsed"
    REHEARSAL = "rehearsal-failed"
    NOT_LOADED = "not-loaded"
    UNLOADED = "unloaded"
    OUTDATED = "loaded-outdated"
    FAULTY = "loaded-faulty"
    DENIED = "denied"
    INITRD = "initrd"
    FAILED = "failed"


class Step(NamedTuple):
    """What `plan` answers. until: when to look again, seconds of CLOCK_BOOTTIME; None: when something changes."""

    action: Action
    why: Why
    until: float | None = None
