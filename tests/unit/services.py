# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for what the daemon talks to: real sockets for journald and the service manager, a clock that is set."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that a test sets; seconds, as CLOCK_BOOTTIME has them."""

    def __init__(self, at: float = 5000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


class Listener:
    """A datagram socket at `path`, as journald and the service manager have one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))

    def close(self) -> None:
        self._socket.close()

    def received(self) -> list[bytes]:
        """What was sent since the last call."""
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(1 << 16))
            except BlockingIOError:
                return messages

    def events(self) -> list[str]:
        """The events among what was sent to a journal."""
        sent = b"".join(self.received())
        return [found.decode() for found in re.findall(rb"KNETSTATD_EVENT\n.{8}([a-z-]+)\n", sent, re.DOTALL)]
