# SPDX-License-Identifier: GPL-2.0-or-later
"""A cgroup of a machine's own in each hierarchy that systemd uses: no two machines share one, and all that a machine
ever started can be ended at once, whatever it forked.

The death of systemd-nspawn does not end its container, so a guard outlives the test run: it does nothing but wait for
the end of this process, then ends the cgroup.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

# Enters the cgroups named before "--", then becomes what follows.
JOIN = 'until [ "$1" = -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift; exec "$@"'
GUARD = 'read -r _; for group; do echo 1 >"$group/cgroup.kill"; done'


def hierarchies() -> Iterator[Path]:
    """Where they are mounted: one, or on hosts with the older layout two."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") or (kind.startswith("cgroup ") and "name=systemd" in kind):
            yield Path(fields.split()[4])


class Cgroup:
    def __init__(self, name: str) -> None:
        self._groups = [base / name for base in hierarchies()]
        self._guard: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        for group in self._groups:
            group.mkdir()
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "sh", *self._groups],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def join(self, label: str) -> list[str]:
        """An argv prefix: what follows it runs in a part of the cgroup called `label`."""
        parts = [group / label for group in self._groups]
        for part in parts:
            part.mkdir()
        return ["sh", "-c", JOIN, "sh", *map(os.fspath, parts), "--"]

    def end(self, label: str = "") -> None:
        """SIGKILL to all of it, or to one part; returns when the processes are gone, not only signalled."""
        deadline = time.monotonic() + 5
        for group in self._groups:
            with contextlib.suppress(OSError):
                (group / label / "cgroup.kill").write_text("1")
                while "populated 1" in (group / label / "cgroup.events").read_text() and time.monotonic() < deadline:
                    time.sleep(0.005)

    def clear(self) -> None:
        """Remove all parts, once end() has emptied them."""
        deadline = time.monotonic() + 5
        for group in self._groups:
            while (below := list(_directories(group))) and time.monotonic() < deadline:
                for path in below:
                    with contextlib.suppress(OSError):
                        path.rmdir()
                time.sleep(0.01)

    def remove(self) -> None:
        self.end()
        self.clear()
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        for group in self._groups:
            with contextlib.suppress(OSError):
                group.rmdir()


def _directories(path: Path) -> Iterator[Path]:
    """Those below `path`, deepest first."""
    for directory, names, _ in os.walk(path, topdown=False):
        yield from (Path(directory, name) for name in names)
