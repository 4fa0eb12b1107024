# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop, on a tree and with a clock that is set: what is marked when, what is looked at, which builders are started."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from typing import TYPE_CHECKING, Any

import kerneltree
import pytest
import systems
from kerneltree import KERNEL
from services import Clock, Listener
from systems import NEWER

from knetstatd.core import config
from knetstatd.core.errors import ChildLost
from knetstatd.core.model import Attempt, Kind
from knetstatd.daemon.loop import Daemon
from knetstatd.daemon.sd_notify import Notify
from knetstatd.daemon.signals import Stopped
from knetstatd.state import attempts
from knetstatd.system import locks
from knetstatd.system.journal import Journal
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The first inotify object of a process asks ldconfig where libc is; builders are programs.
pytestmark = pytest.mark.spawns

BUILDER = '#!/bin/sh\necho "$*" >>"$0.log"\nexit "$(cat "$0.status")"\n'


class Rig:
    """A daemon on a tree, and what it says."""

    def __init__(self, root: Path, place: Path) -> None:
        self.root = root
        self.clock = Clock()
        self.journal = Listener(place / "journal")
        self.builder = systems.write(place / "builder", BUILDER)
        self.builder.chmod(0o755)
        self.ends_with(0)
        journal = Journal(quiet=True, path=str(self.journal.path))
        argv = [os.fspath(self.builder)]
        self.daemon = Daemon(root, config.load(root), journal, clock=self.clock, builder=argv)

    def close(self) -> None:
        while self.daemon.worker.kernel:
            self.daemon.turn(5.0)
        self.daemon.close()
        self.daemon.selector.close()
        self.journal.close()

    def run(self) -> None:
        """Turns the loop until nothing is due and no source has anything to say."""
        while self.daemon.timeout() == 0:
            self.daemon.turn(0.0)

    def start(self) -> None:
        """The first looks."""
        self.daemon.mark_all(0)
        self.run()

    def wait(self, condition: Any) -> None:
        """Turns the loop, its clock standing still, until the sources have brought something about."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.daemon.turn(0.05)

    def ends_with(self, status: int) -> None:
        systems.write(self.builder.with_name("builder.status"), str(status))

    def built(self) -> list[str]:
        """The command lines of the builders so far."""
        log = self.builder.with_name("builder.log")
        return log.read_text().splitlines() if log.exists() else []

    def states(self) -> dict[str, str]:
        """The verdicts that are published."""
        document = json.loads((self.root / "run/knetstatd/status.json").read_text())
        return {verdict["kernel"]: verdict["state"] for verdict in document["verdicts"]}

    @property
    def tree(self) -> Path:
        return self.root / f"usr/lib/modules/{KERNEL}"

    def keep_source(self) -> None:
        """What a builder keeps of a package that somebody else has built."""
        machine = Machine(self.root, self.daemon.machine.config)
        machine.refresh()
        machine.sources.keep(KERNEL, machine.package("demo"))

    def uninstall(self) -> None:
        """As dkms does it: the module's file, then depmod's tables."""
        (self.tree / "updates/dkms/demo.ko").unlink()
        kerneltree.tables(self.tree, *(self.tree / "modules.dep").read_text().splitlines()[1:])

    def install(self, kernel: str) -> None:
        """The same module for a kernel, with its tables."""
        data = (self.root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko").read_bytes()
        kerneltree.add(self.root / f"usr/lib/modules/{kernel}", "updates/dkms/demo.ko", data)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    root = systems.make(tmp_path / "root")
    (root / "run/knetstatd").mkdir(parents=True)
    made = Rig(root, tmp_path)
    made.keep_source()
    yield made
    made.close()


def test_what_somebody_else_has_built_is_kept_by_a_builder(rig: Rig) -> None:
    """A source that is touched later is then known to be the same; root keeps it, and is asked once."""
    rig.daemon.machine.places.sources(KERNEL, "demo").unlink()
    rig.start()
    rig.wait(lambda: not rig.daemon.worker.kernel)
    assert rig.built() == [f"build --step=build -- {KERNEL}"]
    rig.run()
    assert rig.built() == [f"build --step=build -- {KERNEL}"], "what it could not keep is not asked for again"
    rig.keep_source()
    os.utime(rig.root / "usr/src/demo-1.0/dkms.conf")
    rig.start()
    rig.wait(lambda: not rig.daemon.worker.kernel)
    assert rig.states() == {KERNEL: "ready"}
    assert rig.built() == [f"build --step=build -- {KERNEL}"] * 2, "the times are other ones"


def test_the_first_looks_are_published_together(rig: Rig) -> None:
    rig.daemon.mark_all(0)
    rig.daemon.turn(0.0)
    assert not (rig.root / "run/knetstatd/status.json").exists(), "no verdict before every guarded kernel was looked at"
    rig.run()
    assert rig.states() == {KERNEL: "ready"}
    told = rig.journal.events()
    assert told[-2:] == ["ready", "started"]
    assert {"kernel-seen", "next-kernel"} <= set(told)
    assert rig.daemon.timeout() == 900, "now it sleeps until the next resync"
    assert rig.built() == []


def test_a_change_of_a_file_marks_its_kernel_which_is_looked_at_when_it_is_quiet(rig: Rig) -> None:
    rig.daemon.open()
    rig.start()
    rig.uninstall()
    rig.wait(lambda: KERNEL in rig.daemon.due)
    assert rig.daemon.due == {KERNEL: rig.clock.at + 3.0}
    assert rig.states() == {KERNEL: "ready"}, "an event is a hint; only a look changes a verdict"
    rig.clock.at += 3.0
    rig.run()
    assert rig.states() == {KERNEL: "not-built"}
    rig.wait(lambda: rig.built())
    assert set(rig.built()) == {f"build --step=build -- {KERNEL}"}, "a second one if the first has ended meanwhile"


def test_a_storm_of_events_is_one_look_and_does_not_put_it_off_for_ever(rig: Rig) -> None:
    rig.daemon.open()
    rig.start()
    begin, stretches = rig.clock.at, set()
    for second in range(80):
        rig.clock.at = begin + second
        for number in range(20):
            (rig.tree / f"{number}").write_text(str(second))
        rig.wait(lambda: rig.daemon.changed.get(KERNEL) == rig.clock.at)
        assert set(rig.daemon.due) == {KERNEL}
        stretches.add(rig.daemon.first_mark[KERNEL])
    assert stretches == {begin, begin + 60}, "1,200 changes were one look, a minute after the first of them"
    assert rig.daemon.due[KERNEL] == rig.clock.at + 3.0


def test_what_no_event_told_is_found_at_the_next_resync(rig: Rig) -> None:
    """No source is open: every event is missed."""
    rig.start()
    rig.uninstall()
    rig.clock.at += 899.0
    assert rig.daemon.timeout() == 1.0
    rig.daemon.turn(0.0)
    assert rig.states() == {KERNEL: "ready"}
    rig.clock.at += 1.0
    rig.run()
    assert rig.states() == {KERNEL: "not-built"}


def test_a_kernel_that_comes_and_becomes_the_next(rig: Rig) -> None:
    rig.daemon.open()
    rig.start()
    rig.journal.received()
    systems.write(rig.root / "boot/grub/grubenv", f"# GRUB Environment Block\nsaved_entry=gnulinux-{NEWER}\n")
    rig.wait(lambda: "" in rig.daemon.due)
    rig.clock.at += 3.0
    rig.run()
    assert rig.states() == {NEWER: "not-built"}
    assert "next-kernel" in rig.journal.events()


def test_a_faulty_configuration_keeps_the_old_one(rig: Rig) -> None:
    rig.daemon.open()
    rig.start()
    rig.journal.received()
    path, old = rig.root / "etc/knetstatd/knetstatd.toml", rig.daemon.machine.config
    path.write_text("modules = 5\n")
    os.kill(os.getpid(), signal.SIGHUP)
    rig.wait(lambda: "" in rig.daemon.due)
    assert rig.daemon.machine.config is old
    rig.run()
    assert rig.journal.events() == ["config-rejected"]
    path.write_text('modules = ["demo", "other"]\nload = []\n')
    os.kill(os.getpid(), signal.SIGHUP)
    rig.wait(lambda: rig.daemon.machine.config is not old)
    rig.run()
    assert rig.daemon.machine.packages() == ("demo", "other")
    assert rig.journal.events()[0] == "config-loaded"


def test_a_login_is_told_that_the_next_kernel_is_not_known(rig: Rig) -> None:
    motd = rig.daemon.machine.places.motd
    rig.daemon.open()
    rig.start()
    assert not motd.exists()
    systems.write(rig.root / "boot/extlinux/extlinux.conf", "")
    rig.start()
    assert "the next kernel is not known: extlinux (/boot/extlinux/extlinux.conf) is here" in motd.read_text()


def test_sigterm_ends_the_loop_and_takes_back_what_was_published(rig: Rig) -> None:
    rig.daemon.open()
    rig.start()
    before = signal.getsignal(signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    rig.daemon.loop()
    rig.daemon.close()
    assert rig.journal.events()[-1] == "stopping"
    assert not (rig.root / "run/knetstatd/status.json").exists()
    assert signal.getsignal(signal.SIGTERM) != before, "the former owner has its signals back"


def test_a_build_of_others_is_waited_for_without_a_look(rig: Rig) -> None:
    """A build may take an hour; it ends with an event."""
    lock = rig.daemon.machine.places.build_lock
    rig.uninstall()
    rig.daemon.open()
    held = locks.hold(lock)
    rig.start()
    assert rig.states() == {KERNEL: "building"}
    rig.clock.at += 1  # one look more, for an end between the look and the watch
    rig.run()
    assert rig.daemon.timeout() > 600
    assert rig.built() == []
    os.close(held)
    rig.wait(lambda: 0 < rig.daemon.timeout() < 1)
    rig.clock.at += 1
    rig.run()
    rig.wait(rig.built)


def test_the_service_manager_is_answered_while_a_child_works(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100")
        rig.daemon.notify = Notify()
        in_child = rig.daemon.machine._proofs._in_child
        assert in_child is not None
        assert in_child(lambda: [1]) == [1]
        said = [manager.recv(4096, socket.MSG_DONTWAIT) for _ in range(2)]
        assert said == [b"EXTEND_TIMEOUT_USEC=60000000", b"WATCHDOG=1"]
        rig.start()
        rig.daemon.alive_at = 0.0
        with contextlib.suppress(BlockingIOError):
            while True:
                said.append(manager.recv(4096, socket.MSG_DONTWAIT))
        assert any(line.startswith(b"READY=1") for line in said)
        assert in_child(lambda: [1]) == [1]
        assert manager.recv(4096, socket.MSG_DONTWAIT) == b"WATCHDOG=1", "no more time is asked for than the start needs"


def test_a_lost_child_is_unknown_and_root_is_asked_once(rig: Rig) -> None:
    """As one that the kernel kills for want of memory: no traceback, no build, no green, and no hot loop."""
    rig.start()
    assert rig.states() == {KERNEL: "ready"}

    def lost(work: object) -> list[Any]:
        raise ChildLost("the process that was to do it ended with signal 9")

    good, rig.daemon.machine._proofs._in_child = rig.daemon.machine._proofs._in_child, lost
    os.utime(rig.tree / "modules.dep")
    rig.daemon.mark_all(0)
    rig.run()
    assert rig.states() == {KERNEL: "unproven"}
    [verdict] = rig.daemon.steps.values()
    assert (verdict.ready, verdict.progress, verdict.reason) == (
        False, False, "Nothing is known of it: the process that was to do it ended with signal 9",
    )  # fmt: skip
    rig.wait(lambda: not rig.daemon.worker.kernel)
    rig.run()
    assert rig.built() == [f"build --step=build -- {KERNEL}"], "root may have the memory, and keeps what it reads; once"
    assert rig.daemon.timeout() > 600
    rig.daemon.machine._proofs._in_child = good
    rig.daemon.mark_all(0)
    rig.run()
    assert rig.states() == {KERNEL: "ready"}, "nothing of it was kept"


def test_a_stop_ends_a_child(rig: Rig) -> None:
    rig.daemon.open()
    os.kill(os.getpid(), signal.SIGTERM)
    in_child = rig.daemon.machine._proofs._in_child
    assert in_child is not None
    with pytest.raises(Stopped):
        in_child(list)


def test_one_builder_at_a_time(rig: Rig) -> None:
    (rig.root / "etc/knetstatd/knetstatd.toml").write_text('modules = ["demo"]\nload = []\nkernels = "all"\n')
    rig.daemon.machine.config = config.load(rig.root)
    rig.uninstall()
    gate = rig.builder.with_name("builder.status")
    gate.unlink()
    os.mkfifo(gate)  # a builder works until it can read its exit status there
    rig.start()
    assert rig.states() == {KERNEL: "not-built", NEWER: "not-built"}
    assert rig.daemon.worker.kernel == KERNEL, "the next one to boot comes first"
    rig.wait(rig.built)
    rig.daemon.mark_all(0)
    rig.run()
    assert rig.built() == [f"build --step=build -- {KERNEL}"]
    rig.install(KERNEL)
    gate.write_text("0")
    rig.wait(lambda: len(rig.built()) == 2)
    assert rig.built()[1] == f"build --step=build -- {NEWER}"
    assert rig.states() == {KERNEL: "ready", NEWER: "not-built"}
    gate.write_text("0")
    rig.wait(lambda: not rig.daemon.worker.kernel)


def test_builders_that_cannot_do_their_work_are_started_ever_more_slowly(rig: Rig) -> None:
    rig.uninstall()
    rig.ends_with(5)
    rig.start()
    pauses: list[float] = []
    for _ in range(3):
        rig.wait(lambda: not rig.daemon.worker.kernel and rig.daemon.worker.rest_until > rig.clock.at)
        pauses.append(rig.daemon.worker.rest_until - rig.clock.at)
        before = rig.built()
        rig.clock.at += pauses[-1] - 1.0
        rig.daemon.mark_all(0)
        rig.run()
        assert rig.built() == before, "no builder is started before"
        rig.clock.at += 1.0
    assert pauses == [30.0, 60.0, 120.0]
    rig.wait(lambda: not rig.daemon.worker.kernel)
    assert rig.journal.events().count("degraded") == len(rig.built())


def test_builders_that_see_nothing_to_do_are_started_ever_more_slowly(rig: Rig) -> None:
    """As with a configuration that was changed, and that the daemon has not read yet: they end well and do nothing."""
    rig.uninstall()
    rig.start()
    for pause in (30.0, 60.0):
        rig.wait(lambda: not rig.daemon.worker.kernel and rig.daemon.timeout())
        before = rig.built()
        rig.clock.at += pause - 1.0
        rig.daemon.mark_all(0)
        rig.run()
        assert rig.built() == before, "no builder is started before"
        rig.clock.at += 1.0
        rig.run()
        rig.wait(lambda before=before: rig.built() != before)
    assert len(rig.built()) == 4
    assert rig.journal.events().count("degraded") == 1
    rig.wait(lambda: not rig.daemon.worker.kernel)
    rig.daemon.mark(KERNEL, touched=True)
    rig.clock.at += 3.0
    rig.run()
    rig.wait(lambda: len(rig.built()) > 4)  # and on a busy machine the sixth, which follows it without a pause


@pytest.mark.parametrize("gone", ["var/lib/knetstatd", f"var/lib/knetstatd/kernels/{KERNEL}/demo.json"])
def test_what_was_kept_and_is_deleted_is_looked_at(rig: Rig, gone: str) -> None:
    daemon = rig.daemon
    rig.uninstall()
    daemon.machine.refresh()
    mark = daemon.machine.observe(daemon.machine.look(KERNEL), "demo").fingerprint

    def keep(reason: str) -> None:
        attempt = Attempt(Kind.COMPILE, 1, reason=reason)
        attempts.save(rig.root, daemon.machine.places, KERNEL, "demo", "1.0", mark, attempt)

    gate = rig.builder.with_name("builder.status")
    gate.unlink()
    os.mkfifo(gate)  # a builder works until it can read its exit status there
    keep("one")
    daemon.open()
    rig.start()
    assert rig.states() == {KERNEL: "failed"}
    keep("another")
    rig.wait(lambda: KERNEL in daemon.due)
    rig.clock.at += 3.0
    rig.run()
    daemon.turn(0.0)
    assert daemon.steps[KERNEL, "demo"].reason == "another"
    assert daemon.timeout() > 800, "what is kept is looked at once"
    path = rig.root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    rig.wait(lambda: KERNEL in daemon.due)
    rig.clock.at += 3.0
    rig.run()
    assert daemon.worker.kernel == KERNEL
    keep("a builder's own")
    daemon.turn(0.1)
    due = dict(daemon.due)
    gate.write_text("0")
    assert due == {}, "its end tells what it kept"


def test_the_next_kernel_is_built_for_first(rig: Rig) -> None:
    """Also before the one that runs, which has a module as long as it does."""
    systems.write(rig.root / "etc/knetstatd/knetstatd.toml", 'modules = ["demo"]\nload = []\nkernels = "all"\n')
    rig.daemon.machine.config = config.load(rig.root)
    rig.daemon.machine.running = NEWER
    rig.uninstall()
    rig.start()
    rig.wait(rig.built)
    assert KERNEL in rig.built()[0], "on a busy machine its builder may be done by now, and the next one's at work"


def test_a_kernel_that_is_not_guarded_gets_again_what_an_upgrade_took(rig: Rig) -> None:
    systems.write(rig.root / "boot/grub/grubenv", f"# GRUB Environment Block\nsaved_entry=gnulinux-{NEWER}\n")
    module = kerneltree.module("demo", vermagic=f"{NEWER} SMP preempt mod_unload modversions ")
    kerneltree.add(rig.root / f"usr/lib/modules/{NEWER}", "updates/dkms/demo.ko", module)
    rig.start()
    assert rig.states() == {NEWER: "ready"}
    assert rig.built() == []
    systems.upgrade(rig.root)
    rig.uninstall()
    rig.start()
    rig.wait(lambda: rig.built())
    assert set(rig.built()) == {f"build --step=build -- {KERNEL}"}
    assert rig.states() == {NEWER: "ready"}, "no verdict depends on it"
