# SPDX-License-Identifier: GPL-2.0-or-later
"""Our locks: held by one, seen by others, and kept by a program that inherits the descriptor."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.state.paths import places
from knetstatd.system import locks, process

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = "a.lock"


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def test_one_holds_it_and_others_see_that(tmp_path: Path) -> None:
    lock = tmp_path / "run/x.lock"
    assert not locks.held(lock), "there is no such file"
    with locks.locked(lock, 0.0):
        assert locks.held(lock)
        with pytest.raises(KnetstatdError, match=r"x\.lock: another run of knetstatd holds this lock"):
            locks.hold(lock)
    assert not locks.held(lock)
    os.close(locks.hold(lock))


def test_looking_does_not_keep_it(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    with locks.locked(lock, 0.0):
        pass
    assert not locks.held(lock)
    with locks.locked(lock, 0.0):
        pass


def test_it_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locks.locked(tmp_path / "x", 0.0):
        raise KeyError
    assert not locks.held(tmp_path / "x")


def test_waiting_for_it(tmp_path: Path) -> None:
    lock = tmp_path / "x"
    first, begin = locks.hold(lock), time.monotonic()
    timer = threading.Timer(0.3, os.close, [first])
    timer.start()
    os.close(locks.hold(lock, 20.0))
    timer.join()
    assert time.monotonic() - begin > 0.2
    with locks.locked(lock, 0.0), pytest.raises(KnetstatdError):
        locks.hold(lock, 0.2)


def test_what_cannot_be_a_lock_is_not_held(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    assert not locks.held(tmp_path / "directory" / "absent")
    assert not locks.held(tmp_path / "file" / "x")
    with pytest.raises(OSError, match="Is a directory"):
        locks.hold(tmp_path / "directory")


@pytest.mark.spawns
def test_a_program_that_inherits_the_descriptor_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "x"
    fd = locks.hold(lock)
    seen: list[bool] = []

    def let_go() -> None:
        if not seen:
            os.close(fd)
            seen.append(locks.held(lock))

    process.run(["/bin/sleep", "1"], timeout=10, keep=[fd], tick=let_go)
    assert seen == [True], "we have closed it, and the program has it"
    assert not locks.held(lock)
    fd = locks.hold(lock)
    process.run(["/bin/true"], timeout=10)
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.usefixtures("umask")
def test_only_the_owner_can_open_a_lock_and_everybody_can_look(tmp_path: Path) -> None:
    runtime = tmp_path / "run/ours"
    with locks.locked(runtime / LOCK, 0.0):
        assert stat.S_IMODE((runtime / LOCK).stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o755


def test_a_lock_file_of_before_that_everybody_can_hold_does_not_matter(tmp_path: Path) -> None:
    ours = places(tmp_path)
    ours.runtime.mkdir(parents=True)
    before = [os.open(ours.runtime / name, os.O_CREAT | os.O_RDWR, 0o644) for name in ("build.lock", "daemon.lock")]
    for fd in before:
        fcntl.flock(fd, fcntl.LOCK_EX)
    for lock in (ours.build_lock, ours.daemon_lock):
        assert not locks.held(lock)
        os.close(locks.hold(lock))
    for fd in before:
        os.close(fd)


def test_a_user_who_may_not_open_it_finds_its_holder_in_the_kernels_list(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    with locks.locked(tmp_path / LOCK, 0.0):
        assert locks._listed(path)
        assert not locks._listed(path, tmp_path / "no-such-list")
        assert not locks._listed(tmp_path / "no-such-lock")
    assert not locks._listed(path)


def test_the_list_is_compared_by_device_and_inode(tmp_path: Path) -> None:
    path, listing = tmp_path / "lock", tmp_path / "locks"
    path.touch()
    status = os.stat(path)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    for line, held in (
        (f"1: FLOCK  ADVISORY  WRITE 7 {device}:{status.st_ino} 0 EOF", True),
        (f"1: FLOCK  ADVISORY  READ 7 {device}:{status.st_ino} 0 EOF", False),
        (f"1: POSIX  ADVISORY  WRITE 7 {device}:{status.st_ino} 0 EOF", False),
        (f"1: -> FLOCK  ADVISORY  WRITE 7 {device}:{status.st_ino} 0 EOF", False),
        (f"1: FLOCK  ADVISORY  WRITE 7 fe:01:{status.st_ino} 0 EOF", False),
        (f"1: FLOCK  ADVISORY  WRITE 7 {device}:{status.st_ino + 1} 0 EOF", False),
    ):
        listing.write_text(f"{line}\n")
        assert locks._listed(path, listing) is held, line


def test_a_file_of_somebody_elses_with_the_same_number_is_not_ours() -> None:
    """tmpfs has no device of its own, as /run; and whoever makes files in /dev/shm gets every number."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        path, listing = Path(place, "lock"), Path(place, "locks")
        path.touch()
        status = os.stat(path)
        major, minor = os.major(status.st_dev), os.minor(status.st_dev)
        for device, held in ((f"{major:02x}:{minor + 1:02x}", False), (f"{major:02x}:{minor:02x}", True)):
            listing.write_text(f"1: FLOCK  ADVISORY  WRITE 7 {device}:{status.st_ino} 0 EOF\n")
            assert locks._listed(path, listing) is held


def test_of_a_flood_of_locks_only_the_beginning_is_read(tmp_path: Path) -> None:
    path, listing = tmp_path / "lock", tmp_path / "locks"
    path.touch()
    status = os.stat(path)
    ours = f"7: FLOCK  ADVISORY  WRITE 7 {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} 0 EOF\n"
    for before, held in ((1000, True), (40_000, False)):
        listing.write_text("7: POSIX  ADVISORY  WRITE 4711 00:42:7 0 0\n" * before + ours)
        assert locks._listed(path, listing) is held
