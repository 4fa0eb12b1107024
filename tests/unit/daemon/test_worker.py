# SPDX-License-Identifier: GPL-2.0-or-later
"""How a builder is started, under systemd and without it; that its end is judged by its status and by our lock."""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

import pytest
import systems
from kerneltree import KERNEL
from services import Clock, Listener

from knetstatd.core import config
from knetstatd.core.model import Action
from knetstatd.daemon.sd_notify import Notify
from knetstatd.daemon.step import KINDS
from knetstatd.daemon.worker import Worker
from knetstatd.system import locks
from knetstatd.system.journal import Journal
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.spawns


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(tmp_path / "journal")
    yield made
    made.close()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    root = systems.make(tmp_path / "root")
    (root / "run/knetstatd").mkdir(parents=True)
    made = Machine(root, config.load(root))
    made.refresh()
    return made


def worker(machine: Machine, journal: Listener, clock: Clock, script: str) -> Worker:
    builder = ["/bin/sh", "-c", script, "sh"]
    return Worker(machine, Journal(quiet=True, path=str(journal.path)), Notify(), clock=clock, builder=builder)


def run(worker: Worker) -> None:
    """One builder from its start to its end."""
    assert worker.start(KERNEL, "build")
    assert worker.kernel == KERNEL
    assert select.select([worker], [], [], 20)[0], "its end is told by the descriptor"
    worker.ended()
    assert worker.kernel == ""


@pytest.fixture(autouse=True)
def unmanaged(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "JOURNAL_STREAM", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)


def test_a_builder_gets_its_kernel_and_a_small_environment(
    tmp_path: Path, machine: Machine, journal: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/knetstatd")
    monkeypatch.setenv("SECRET", "x")
    made = worker(machine, journal, Clock(), f'echo "$*" >{tmp_path}/argv; env >{tmp_path}/env')
    run(made)
    assert (tmp_path / "argv").read_text() == f"build --step=build -- {KERNEL}\n"
    environment = (tmp_path / "env").read_text()
    assert "STATE_DIRECTORY=/var/lib/knetstatd\n" in environment
    assert "SECRET" not in environment


def test_every_step_that_the_daemon_takes_has_a_kind_of_builder() -> None:
    assert set(KINDS) == set(Action) - {Action.DONE, Action.WAIT, Action.GIVE_UP}


@pytest.mark.parametrize("status", [0, 75])
def test_an_orderly_end_is_followed_by_no_pause(machine: Machine, journal: Listener, status: int) -> None:
    made = worker(machine, journal, Clock(), f"exit {status}")
    for _ in range(3):
        run(made)
    assert made.rest_until == 0.0
    assert journal.events() == []


@pytest.mark.parametrize(("end", "words"), [("exit 1", b"status 1"), ("kill -9 $$", b"signal 9")])
def test_a_disorderly_end_is_told_and_from_the_second_on_followed_by_a_pause(
    machine: Machine, journal: Listener, end: str, words: bytes
) -> None:
    clock = Clock()
    made = worker(machine, journal, clock, end)
    run(made)
    assert made.rest_until == 0.0, "one is an accident"
    [said] = journal.received()
    assert words in said
    run(made)
    assert made.rest_until == clock.at + 30
    clock.at += 30
    run(made)
    assert made.rest_until == clock.at + 60


def test_a_unit_that_is_still_at_work_is_no_failure(machine: Machine, journal: Listener) -> None:
    """systemctl was told to stop waiting; the unit holds the lock."""
    made = worker(machine, journal, Clock(), "exit 1")
    with locks.locked(machine.places.build_lock, 0.0):
        run(made)
        run(made)
    assert (made.rest_until, journal.events()) == (0.0, [])


def test_a_builder_that_cannot_be_started(machine: Machine, journal: Listener) -> None:
    clock = Clock()
    made = Worker(
        machine, Journal(quiet=True, path=str(journal.path)), Notify(), clock=clock, builder=["/nowhere/knetstatctl"]
    )  # fmt: skip
    assert not made.start(KERNEL, "build")
    assert not made.start(KERNEL, "build")
    assert made.kernel == ""
    assert made.rest_until == clock.at + 30
    assert journal.events() == ["degraded", "degraded"]


@pytest.fixture
def managed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notify]:
    manager = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(manager.path))
    notify = Notify()
    yield notify
    notify.close()
    manager.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(tmp_path / "door"))
        listening.listen()
        yield listening


@pytest.mark.parametrize(("answer", "said"), [(b"0\n", []), (b"75\n", []), (b"1\n", ["degraded"]), (b"", ["degraded"])])
def test_under_a_service_manager_root_is_asked_in_one_line(
    tmp_path: Path, machine: Machine, journal: Listener, managed: Notify, door: socket.socket, answer: bytes, said: list[str]
) -> None:
    made = Worker(machine, Journal(quiet=True, path=str(journal.path)), managed, door=tmp_path / "door")
    assert made.start(KERNEL, "build")
    connection, _ = door.accept()
    with connection:
        assert connection.recv(200) == f"build {KERNEL} next\n".encode()
        assert not select.select([made], [], [], 0.1)[0]
        connection.sendall(answer)
    assert select.select([made], [], [], 20)[0]
    made.ended()
    assert (made.kernel, journal.events()) == ("", said)
    machine.config = machine.config._replace(inhibit="off")
    assert made.start(KERNEL, "load")
    with door.accept()[0] as connection:
        assert connection.recv(200) == f"load {KERNEL}\n".encode()
    made.ended()


def test_without_the_socket_it_rests(tmp_path: Path, machine: Machine, journal: Listener, managed: Notify) -> None:
    made = Worker(machine, Journal(quiet=True, path=str(journal.path)), managed, door=tmp_path / "no door")
    assert not made.start(KERNEL, "build")
    assert journal.events() == ["degraded"]
