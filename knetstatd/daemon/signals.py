# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals to the daemon: SIGTERM and SIGINT end it, SIGHUP makes it read its configuration again."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType


class Stopped(BaseException):
    """A signal that ends the daemon came while it waited for a child."""


class Signals:
    """Readable, for a selector, when a signal came. stopping: one that ends the daemon has come, read or not."""

    def __init__(self) -> None:
        self.stopping = False
        self._opened = contextlib.ExitStack()
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for end in (self._read, write):
            self._opened.callback(os.close, end)
        self._opened.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write, warn_on_full_buffer=False))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self._opened.callback(signal.signal, number, signal.signal(number, self._come))

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.stopping = self.stopping or number != signal.SIGHUP

    def fileno(self) -> int:
        """For the selector."""
        return self._read

    def read(self) -> bool:
        """Takes what came; whether the configuration is to be read again."""
        return signal.SIGHUP in os.read(self._read, 4096)

    def close(self) -> None:
        """Leaves signals to what they were."""
        self._opened.close()
