# SPDX-License-Identifier: GPL-2.0-or-later
"""Step after step: all of them by hand, those of one kind for the daemon, and an end in every case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import machinetree
import pytest
from machinetree import GOOD, KERNEL

from knetstatd.build import run
from knetstatd.core.errors import KnetstatdError
from knetstatd.core.model import Action, Artefact, Attempt, Kind
from knetstatd.state import attempts, guarded, load_history
from knetstatd.system import locks
from knetstatd.system.journal import Journal
from knetstatd.system.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from knetstatd.verdict.observe import Machine

pytestmark = pytest.mark.spawns
INSTALLED = f"lib/modules/{KERNEL}/updates/dkms/demo.ko"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    machinetree.make(tmp_path)
    machinetree.write(tmp_path / "proc/modules", "")
    return tmp_path


@pytest.fixture
def told(tmp_path: Path) -> Iterator[machinetree.Told]:
    with machinetree.Told(tmp_path) as told:
        yield told


class Meanwhile(Progress):
    """A progress that shows nothing. Somebody does something when a phase ends, and while something is waited for."""

    def __init__(self, *, end: Callable[[], object] = bool, tick: Callable[[], object] = bool) -> None:
        super().__init__(shown=False)
        self._does, self._waits = end, tick

    def end(self) -> None:
        super().end()
        self._does()

    def tick(self) -> None:
        super().tick()
        self._waits()


def manual(machine: Machine, told: machinetree.Told, progress: Progress | None = None, *, wait: bool = False) -> None:
    run.run_manual(machine, told.journal, progress or Progress(shown=False), [KERNEL], ["demo"], wait=wait)


def attempt(machine: Machine) -> Attempt | None:
    return attempts.load(machine.root, machine.places, KERNEL, "demo", machinetree.look(machine).fingerprint)


def fail(machine: Machine, kind: Kind, *, loading: bool = False) -> None:
    """A failure of before, after which there would be no other attempt."""
    mark = machinetree.look(machine).fingerprint
    failed = Attempt(kind, 9, not_before=attempts.now() + 900, reason="from before", loading=loading)
    attempts.save(machine.root, machine.places, KERNEL, "demo", "1.0", mark, failed)


def test_by_hand_all_is_done_that_is_to_be_done(root: Path, told: machinetree.Told) -> None:
    machine = machinetree.machine(root, load=("demo",))
    manual(machine, told)
    events = [entry["event"] for entry in told.entries()]
    assert events == ["stage-started", "staged", "publish-started", "published", "loaded"]
    assert machinetree.look(machine).observation.installed is Artefact.GOOD
    assert not locks.held(machine.places.build_lock)


@pytest.mark.parametrize("kind", [Kind.API, Kind.DISK])
def test_by_hand_what_failed_before_is_forgotten(root: Path, told: machinetree.Told, kind: Kind) -> None:
    machine = machinetree.machine(root)
    fail(machine, kind)
    run.step_by_step(machine, told.journal, KERNEL, ["demo"], "build")
    assert machinetree.ran(root, "dkms") == [], "the daemon waits, or has given up"
    manual(machine, told)
    assert machinetree.look(machine).observation.installed is Artefact.GOOD


def test_by_hand_what_was_loaded_or_refused_is_forgotten(root: Path, told: machinetree.Told) -> None:
    """For the running kernel; another one knows nothing of it."""
    kerneltree.add(root / "usr/lib/modules" / KERNEL, "updates/dkms/demo.ko", GOOD)
    machine = machinetree.machine(root, running="another")
    machine.places.builders.mkdir(parents=True, exist_ok=True)
    load_history.add(machine.places, "demo", 5.0)
    manual(machine, told)
    assert load_history.known(machine.places, "demo") == (5.0,)
    machine.running = KERNEL
    manual(machine, told)
    assert load_history.known(machine.places, "demo") == ()


def test_the_daemon_asks_for_the_steps_of_one_kind(
    root: Path, told: machinetree.Told, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = machinetree.machine(root, load=("demo",))
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "load")
    assert machinetree.ran(root, "dkms") == []
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "build")
    assert (root / INSTALLED).exists()
    assert machinetree.ran(root, "modprobe") == []
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "load")
    assert machinetree.ran(root, "modprobe") == ["-b -- demo"]
    assert capsys.readouterr() == ("", ""), "nobody looks on"
    assert not locks.held(machine.places.build_lock)


@pytest.mark.timeout(60)
def test_the_daemon_waits_for_nothing_and_tidies_up_when_no_package_changes(root: Path, told: machinetree.Told) -> None:
    machine = machinetree.machine(root)
    left = machinetree.write(machine.places.plain("gone"), "{}")
    lock = root / "var/lib/dpkg/lock-frontend"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.symlink_to(lock)  # whether it is held cannot be known: that counts as held
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "build")
    assert (machinetree.look(machine).observation.staged, left.exists()) == (Artefact.GOOD, True)
    lock.unlink()
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "load")
    assert not left.exists()


def test_one_run_at_a_time(root: Path, told: machinetree.Told) -> None:
    machine = machinetree.machine(root)
    with locks.locked(machine.places.build_lock, 0.0):
        assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "build") is None
        with pytest.raises(KnetstatdError, match="another run of knetstatd holds this lock"):
            manual(machine, told)
    assert machinetree.ran(root, "dkms") == []


def test_a_publication_keeps_the_lock_while_dkms_lives(root: Path, told: machinetree.Told) -> None:
    """Were the builder killed, dkms would go on."""
    machinetree.tell(root, "dkms install", 'ls -l /proc/$$/fd >"$root/held"')
    manual(machinetree.machine(root), told)
    assert "builder.lock" in (root / "held").read_text()


def test_a_failure_that_cannot_be_remembered_is_told_to_the_daemon(root: Path, told: machinetree.Told) -> None:
    machine = machinetree.machine(root)
    machinetree.without_room(root)
    assert run.step_by_step(machine, told.journal, KERNEL, ["demo"], "build") is False


def test_after_a_failure_nothing_more_is_tried(root: Path, told: machinetree.Told) -> None:
    machinetree.tell(root, "dkms build", "exit 10")
    manual(machinetree.machine(root), told)
    assert len(machinetree.ran(root, "dkms")) == 1


def test_what_is_changed_right_after_its_publication_is_not_built_again(root: Path, told: machinetree.Told) -> None:
    """Something would change it again; that is remembered as a failure, and ends the run."""
    machine = machinetree.machine(root)

    def change() -> None:
        if (root / INSTALLED).exists():
            (root / INSTALLED).write_bytes(kerneltree.module("demo", build_id="bbbb"))

    manual(machine, told, Meanwhile(end=change))
    assert [line.partition(" ")[0] for line in machinetree.ran(root, "dkms")] == ["build", "mktarball", "ldtarball", "install"]
    kept = attempt(machine)
    assert kept is not None
    assert (kept.kind, "something has changed it since" in kept.reason) == (Kind.PUBLISH, True)
    assert kept.fix == f"knetstatctl build {KERNEL}"


@pytest.mark.parametrize("ran", [["build"], ["build", "mktarball"]])
def test_a_package_that_is_removed_while_it_is_made_is_not_brought_back(
    root: Path, told: machinetree.Told, ran: list[str]
) -> None:
    machinetree.tell(root, f"dkms {ran[-1]}", 'rm "$root/var/lib/dkms/demo/1.0/source"')
    manual(machinetree.machine(root), told)
    assert [line.partition(" ")[0] for line in machinetree.ran(root, "dkms")] == ran


@pytest.mark.parametrize("wait", [False, True])
def test_the_end_of_a_package_transaction_is_waited_for(root: Path, told: machinetree.Told, wait: bool) -> None:
    lock = root / "var/lib/dpkg/lock-frontend"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.symlink_to(lock)  # whether it is held cannot be known: that counts as held
    waited: list[int] = []

    def tick() -> None:
        if (root / "ran/dkms").exists():
            waited.append(1)
            if wait and len(waited) == 3:
                lock.unlink()

    machine = machinetree.machine(root)
    manual(machine, told, Meanwhile(tick=tick), wait=wait)
    if not wait:
        lock.unlink(missing_ok=True)
    assert machinetree.look(machine).observation.staged is (Artefact.NONE if wait else Artefact.GOOD)
    assert machinetree.look(machine).observation.installed is (Artefact.GOOD if wait else Artefact.NONE)


def test_each_step_has_a_kind() -> None:
    """The daemon starts a builder for every action that is work."""
    done = {action for actions in run.STEPS.values() for action in actions}
    assert done == set(Action) - {Action.DONE, Action.WAIT, Action.GIVE_UP}


@pytest.mark.spawns
def test_a_kernel_that_is_not_guarded_gets_only_what_it_had(tmp_path: Path) -> None:
    machinetree.make(tmp_path)
    kerneltree.make(tmp_path, "6.2.0-1-amd64")
    machinetree.write(tmp_path / "boot/vmlinuz-6.2.0-1-amd64", "image")
    machine = machinetree.machine(tmp_path, running="6.2.0-1-amd64")
    assert KERNEL not in machine.wanted()
    for owed, built in (((), False), ((KERNEL,), True)):
        guarded.save(machine.places, {"demo": guarded.Guarded("1.0", True, "", "mark", (), owed)})
        assert run.step_by_step(machine, Journal(quiet=True, path="/nonexistent"), KERNEL, ["demo"], "build")
        assert (tmp_path / f"lib/modules/{KERNEL}/updates/dkms/demo.ko").exists() is built
