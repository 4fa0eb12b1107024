# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals: a stop is known before it is read, SIGHUP is when it is, and who had them before has them again."""

from __future__ import annotations

import contextlib
import os
import select
import signal

import pytest

from knetstatd.daemon.signals import Signals


@pytest.mark.parametrize(("number", "stops"), [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGHUP, False)])
def test_what_a_signal_means(number: signal.Signals, stops: bool) -> None:
    before = signal.getsignal(number)
    with contextlib.closing(Signals()) as signals:
        assert not signals.stopping
        os.kill(os.getpid(), number)
        assert signals.stopping is stops
        assert select.select([signals], [], [], 5)[0] == [signals]
        assert signals.read() is not stops
        assert not select.select([signals], [], [], 0)[0]
        assert signals.stopping is stops
    assert signal.getsignal(number) is before
