# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service manager hears, and what of its environment is taken over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from services import Listener

from knetstatd.daemon.sd_notify import Notify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    made = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(made.path))
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()


def test_assignments_arrive_in_one_message_one_a_line(manager: Listener) -> None:
    notify = Notify()
    assert notify.managed
    notify("READY=1", "STATUS=two\nlines, ä and 漢")
    notify.close()
    notify("STOPPING=1")
    assert manager.received() == ["READY=1\nSTATUS=two lines, ä and 漢".encode()]
    assert "NOTIFY_SOCKET" not in os.environ, "dkms and make must not speak for us"


def test_without_a_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify = Notify()
    notify("READY=1")
    notify.close()
    assert (notify.managed, notify.watchdog) == (False, None)


@pytest.mark.parametrize(
    ("interval", "pid", "wanted"),
    [("30000000", "", 15.0), ("30000000", "ours", 15.0), ("30000000", "1", None), ("0", "", None), ("x", "", None)],
)
def test_the_watchdog_is_fed_twice_in_its_time(
    manager: Listener, monkeypatch: pytest.MonkeyPatch, interval: str, pid: str, wanted: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", interval)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    notify = Notify()
    notify.close()
    assert notify.watchdog == wanted
    assert "WATCHDOG_USEC" not in os.environ
