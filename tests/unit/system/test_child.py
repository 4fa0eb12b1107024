# SPDX-License-Identifier: GPL-2.0-or-later
"""Work in a child: its answer comes back, and whatever becomes of the child, its parent goes on."""

from __future__ import annotations

import os
import resource
import signal
import time

import pytest

from knetstatd.core.errors import ChildLost
from knetstatd.system import child


def sleep(seconds: float) -> list[None]:
    time.sleep(seconds)
    return []


def die() -> list[None]:
    signal.raise_signal(signal.SIGKILL)
    return []


def test_its_answer() -> None:
    here = os.getpid()
    [pid, text] = child.in_child(lambda: [os.getpid(), "ä" * 200_000])
    assert (pid != here, text) == (True, "ä" * 200_000)
    kept = [1]
    assert child.in_child(lambda: [kept.pop()]) == [1]
    assert kept == [1], "what it changes is lost"


def test_one_that_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        child.in_child(lambda: [1 // 0])
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_one_that_is_killed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildLost, match="ended with signal 9"):
        child.in_child(die)
    assert capfd.readouterr().err == ""


def test_one_without_memory(capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> list[int]:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, 1 << 20))
        return list(range(1 << 24))

    with pytest.raises(ChildLost, match="no memory"):
        child.in_child(work)
    assert capfd.readouterr().err == ""


def test_none_can_be_started() -> None:
    before, limits = len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(ChildLost, match="no process can be started for it: Too many open files"):
            child.in_child(lambda: [1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_that_takes_too_long() -> None:
    with pytest.raises(ChildLost, match="signal 9"):
        child.in_child(lambda: sleep(20), pace=0.01, longest=0.02)


def test_its_parent_is_told_while_it_works() -> None:
    ticks: list[None] = []
    child.in_child(lambda: sleep(0.1), tick=lambda: ticks.append(None), pace=0.01)
    assert len(ticks) > 3


def test_what_its_parent_raises_ends_it() -> None:
    def tick() -> None:
        raise InterruptedError

    begin = time.monotonic()
    with pytest.raises(InterruptedError):
        child.in_child(lambda: sleep(20), tick=tick, pace=0.01)
    assert time.monotonic() - begin < 10
