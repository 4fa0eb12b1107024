# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling the service manager: the owner of sdnotify (sd_notify(3))."""

from __future__ import annotations

import os

import sdnotify


class Notify:
    """The service manager's socket, if there is one; without it every call does nothing.

    managed: whether a service manager started us and listens.
    watchdog: half the seconds between the signs of life that the manager wants; None if it wants none.
    """

    def __init__(self) -> None:
        # Without a socket sdnotify makes one all the same, and loses it.
        self._notifier = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        # Taken out of the environment: dkms and make must not speak for us.
        self.managed = bool(os.environ.pop("NOTIFY_SOCKET", ""))
        interval, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        wanted = interval.isdigit() and pid in ("", str(os.getpid()))
        self.watchdog: float | None = int(interval) / 2_000_000 if wanted and int(interval) else None

    def __call__(self, *assignments: str) -> None:
        """Sends `NAME=value` assignments in one message.

        sdnotify encodes as latin-1 and drops, silently, what does not fit; given text whose latin-1 bytes are the UTF-8
        ones it sends correct UTF-8.
        """
        if self._notifier is None:
            return
        lines = "\n".join(a.replace("\n", " ") for a in assignments)
        self._notifier.notify(lines.encode("utf-8", "replace").decode("latin-1"))

    def close(self) -> None:
        """Sends nothing any more."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
        self._notifier = None
