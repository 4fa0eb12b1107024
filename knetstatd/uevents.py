# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that come and go in the running kernel: the owner of pyudev."""

from __future__ import annotations

import pyudev


class Uevents:
    """The kernel's own announcements of modules (source `kernel`: it needs no udevd and works in a private network).

    Raises OSError where netlink cannot be used; the daemon then relies on its other sources.
    """

    def __init__(self) -> None:
        self._open()

    def _open(self) -> None:
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        # Not filter_by: it fails now and then with a stale errno (pyudev issue 548); there are few events anyway.
        self._monitor.start()

    def fileno(self) -> int:
        """For the selector."""
        return int(self._monitor.fileno())

    def read(self) -> set[str] | None:
        """The names of the modules that were added or removed since the last call; None: some events were lost."""
        found = set()
        try:
            while (device := self._monitor.poll(timeout=0)) is not None:
                if device.subsystem == "module":
                    found.add(str(device.sys_name))
        except OSError:
            # ENOBUFS: the queue overflowed. The socket stays usable, what it held is gone.
            return None
        return found
