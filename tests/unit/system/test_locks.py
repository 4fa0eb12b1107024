# SPDX-License-Identifier: GPL-2.0-or-later
"""Our locks: held by one, seen by others, and kept by a program that inherits the descriptor."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import locks, process

if TYPE_CHECKING:
    from pathlib import Path


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
