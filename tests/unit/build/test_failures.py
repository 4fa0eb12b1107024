# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of a failure and told of it: its class, whether there will be another attempt, and when."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import machinetree
import pytest
from machinetree import KERNEL

from knetstatd.build.failures import Failures, classified
from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Action, Answer, Attempt, Kind, Outcome
from knetstatd.state import attempts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.verdict.observe import Machine, Seen


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Kind.DISK),
        (OSError(errno.EROFS, "Read-only file system"), Kind.READ_ONLY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), Kind.MEMORY),
        (OSError(errno.EIO, "Input/output error"), Kind.PUBLISH),
        (OSError("without a number"), Kind.PUBLISH),
        (KnetstatdError("what", "where", "fix"), Kind.PUBLISH),
        (BuildError(Kind.API, "what"), Kind.API),
    ],
)
def test_classes(error: OSError | KnetstatdError, kind: Kind) -> None:
    assert classified(error).kind == kind


def test_what_an_error_says_is_kept() -> None:
    error = classified(OSError(errno.ENOSPC, "No space left on device", "/x"))
    assert (error.what, error.where) == ("No space left on device", "/x")
    error = classified(OSError("without a number"))
    assert (error.what, error.where) == ("without a number", "")
    assert classified(KnetstatdError("what", "where", "fix")).args == ("what", "where", "fix")


class Bench:
    """A machine, whose failures are remembered, and told."""

    def __init__(self, root: Path, told: machinetree.Told) -> None:
        self.root = root
        self.machine = machinetree.machine(root)
        self.failures = Failures(self.machine, told.journal)
        self._told = told

    def seen(self) -> Seen:
        return machinetree.look(self.machine)

    def failed(self, error: BuildError, action: Action = Action.STAGE) -> dict[str, str]:
        """What is told of a failure."""
        self.failures.failed(self.seen(), action, error)
        return {key: value for entry in self._told.entries() for key, value in entry.items()}

    def kept(self) -> Attempt:
        attempt = kept(self.machine)
        assert attempt is not None
        return attempt


def kept(machine: Machine) -> Attempt | None:
    """What is remembered of the package as it is now."""
    return attempts.load(machine.root, machine.places, KERNEL, "demo", machinetree.look(machine).fingerprint)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    machinetree.make(tmp_path)
    with machinetree.Told(tmp_path) as told:
        yield Bench(tmp_path, told)


def begin_transaction(root: Path) -> Path:
    """A lock of which cannot be known whether it is held: that counts as held."""
    lock = root / "var/lib/dpkg/lock-frontend"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.symlink_to(lock)
    return lock


def test_what_waiting_cannot_heal_is_given_up(bench: Bench) -> None:
    told = bench.failed(BuildError(Kind.API, "x.c line 1: no", "", "port it", ("line",)))
    assert (told["event"], told["kind"], told["fix"], told["evidence"]) == ("gave-up", "kernel-api", "port it", "line")
    assert told["message"].startswith(f"demo 1.0 for {KERNEL}: x.c line 1: no; ")
    assert (bench.kept().kind, bench.kept().loading, bench.kept().evidence) == (Kind.API, False, ("line",))
    assert [told[key] for key in ("package", "version", "kernel", "attempt", "log")] == ["demo", "1.0", KERNEL, "1", ""]


def test_the_last_lines_stay_lines(bench: Bench) -> None:
    assert bench.failed(BuildError(Kind.API, "no", evidence=("one", "two")))["evidence"] == "one\ntwo"


def test_what_waiting_can_heal_is_tried_again(bench: Bench) -> None:
    told = bench.failed(BuildError(Kind.SIGNING, "no key"))
    assert (told["event"], told["fix"]) == ("failed", f"Run: knetstatctl explain {KERNEL}")
    assert told["message"].endswith(" in 30 s")
    assert bench.failed(BuildError(Kind.SIGNING, "no key"))["message"].endswith(" in 60 s")
    assert bench.kept().times == 2


def test_what_may_be_chance_is_tried_twice_more(bench: Bench) -> None:
    events = [bench.failed(BuildError(Kind.TIMEOUT, "it did not end"))["event"] for _ in range(3)]
    assert events == ["failed", "failed", "gave-up"]


def test_a_mismatch_is_built_again(bench: Bench) -> None:
    told = bench.failed(BuildError(Kind.MISMATCH, "another checksum"), Action.LOAD)
    assert told["event"] == "failed"
    assert bench.kept().loading


def test_nothing_is_final_while_packages_change(bench: Bench) -> None:
    """Half of the headers may be there, half of a source: the compiler's complaint is not an honest one."""
    lock = begin_transaction(bench.root)
    told = bench.failed(BuildError(Kind.API, "no such header"))
    assert (told["event"], told["kind"]) == ("failed", "during-transaction")
    assert bench.failed(BuildError(Kind.SIGNING, "no key"))["kind"] == "signing", "that is not final anyway"
    lock.unlink()
    assert bench.failed(BuildError(Kind.API, "no such header"))["event"] == "gave-up"


def test_on_a_full_disk_the_disk_is_the_cause(bench: Bench) -> None:
    """And nothing can be remembered of it, but it is told."""
    bench.machine.places.state.rmdir()
    bench.machine.places.state.symlink_to("/proc/sys/kernel")  # a file system that never has a free block
    told = bench.failed(BuildError(Kind.COMPILE, "as: short write"))
    assert (told["event"], told["kind"], told["reason"]) == ("failed", "disk", "as: short write")
    assert bench.failures.forgetful


def test_a_failure_that_is_remembered_is_not_forgotten(bench: Bench) -> None:
    bench.failed(BuildError(Kind.COMPILE, "no"))
    assert not bench.failures.forgetful


def test_what_was_not_rehearsed_is_told_once(bench: Bench) -> None:
    assert bench.failed(BuildError(Kind.REHEARSAL, "no QEMU"))["event"] == "not-rehearsed"
    assert bench.failed(BuildError(Kind.REHEARSAL, "no QEMU")) == {}
    assert bench.failed(BuildError(Kind.REHEARSAL, "no busybox")) == {}
    assert (bench.kept().times, bench.kept().reason) == (3, "no busybox")
    assert bench.failed(BuildError(Kind.SIGNING, "no key"))["event"] == "failed"
    assert bench.failed(BuildError(Kind.REHEARSAL, "no busybox"))["event"] == "not-rehearsed"


def test_the_log_is_named_if_it_was_kept(bench: Bench) -> None:
    log = os.fspath(bench.machine.places.log(KERNEL, "demo"))
    assert bench.failed(BuildError(Kind.COMPILE, "no", log))["log"] == log
    assert bench.kept().log == log
    assert bench.failed(BuildError(Kind.CONF, "no", "/x.log"))["log"] == ""


def test_a_step_that_the_machine_does_not_survive_is_remembered(bench: Bench) -> None:
    for times in (1, 2):
        bench.failures.begun(bench.seen(), Action.STAGE)
        assert (bench.kept().kind, bench.kept().times, bench.kept().loading) == (Kind.INTERRUPTED, times, False)
    bench.failures.begun(bench.seen(), Action.LOAD)
    assert (bench.kept().times, bench.kept().loading) == (1, True)


def test_only_loading_needs_no_room(bench: Bench) -> None:
    machinetree.without_room(bench.root)
    bench.failures.begun(bench.seen(), Action.LOAD)
    with pytest.raises(OSError, match="kernels"):
        bench.failures.begun(bench.seen(), Action.STAGE)


def test_what_a_kernel_refused_in_a_rehearsal_is_not_built_again(bench: Bench) -> None:
    answer = Answer(Outcome.REFUSED, "init", "its init fails", "tell the author", ("words",))
    bench.failures.refused(bench.seen()._replace(fingerprint=""), answer)
    assert (bench.kept().kind, bench.kept().reason, bench.kept().fix) == (Kind.REFUSED, "its init fails", "tell the author")
    (bench.root / "usr/src/demo-1.0/demo.c").write_text("another source")
    assert kept(bench.machine) is None
