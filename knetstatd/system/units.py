# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own units: their names, running one to its end (systemctl(1), systemd.unit(5)), and reading the files that it left.

Rules:

1. A unit has ended when its state says so, not when `systemctl start` returns: a stop of the machine cancels that job and
   leaves the program at work. If the program had not begun, the job is gone with it: that is no failure of the unit's.
2. A file that an unprivileged unit has left is a stranger's. It is opened below a directory without following a link, and it
   must be a regular file of that directory's owner, of a bounded size.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from knetstatd.core.errors import KnetstatdError, ShuttingDown
from knetstatd.system import files, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PLACES = ("etc", "run", "usr/local/lib", "usr/lib", "lib")
_AT_WORK = ("activating", "active", "deactivating", "reloading", "maintenance")
_TICK = 0.2


def instance(template: str, *arguments: str) -> str:
    """The unit `knetstatd-TEMPLATE@…` for arguments that are names; systemd's %I gives them back, separated by colons."""
    return f"knetstatd-{template}@{':'.join(map(_escape, arguments))}.service"


def _escape(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.") else f"\\x{ord(c):02x}" for c in name)


def available(root: Path, template: str) -> bool:
    """Whether systemd manages the machine under `root` and has the template."""
    name = f"systemd/system/knetstatd-{template}@.service"
    return os.path.isdir(root / "run/systemd/system") and any(os.path.exists(root / place / name) for place in _PLACES)


def complete(root: Path, unit: str, timeout: float, tick: Callable[[], None] | None = None) -> str:
    """Starts a unit, waits until it has ended, and returns its result: `success`, `exit-code`, `oom-kill`, `timeout`, …

    timeout: seconds, then everything in it is killed and the result is `timeout`.  tick: called while it runs. Raises
    KnetstatdError if it could not be started at all, ShuttingDown if that is for a stop of the machine.
    """
    deadline = time.monotonic() + timeout
    started = _systemctl(root, "start", "--", unit, timeout=timeout, tick=tick)
    state = _state(root, unit)
    ran = not started.code or state.get("ActiveState") in _AT_WORK
    while state.get("ActiveState") in _AT_WORK and time.monotonic() < deadline:
        time.sleep(_TICK)
        if tick is not None:
            tick()
        state = _state(root, unit)
    if state.get("ActiveState") in _AT_WORK:
        _kill(root, unit)
        result = "timeout"
    elif not ran and state.get("ActiveState") != "failed":
        said = started.text.strip().splitlines()
        error = ShuttingDown if _is_stopping(root) else KnetstatdError
        raise error(f"cannot be started: {said[0] if said else 'systemctl does not say why'}", unit)
    else:
        result = state.get("Result", "")
    _systemctl(root, "reset-failed", "--", unit)  # told elsewhere; the machine is not degraded
    return result


def kill_all(root: Path, template: str) -> None:
    """Kills every instance of a template that is at work; each has taken its leave, with ExecStopPost, after that."""
    every = f"knetstatd-{template}@*.service"
    _kill(root, every)
    _systemctl(root, "reset-failed", "--", every)


def _kill(root: Path, unit: str) -> None:
    _systemctl(root, "kill", "--signal=KILL", "--", unit)
    _systemctl(root, "stop", "--", unit, timeout=120)


def _systemctl(root: Path, *words: str, timeout: float = 30.0, tick: Callable[[], None] | None = None) -> process.Finished:
    return process.run(["systemctl", *words], timeout=timeout, env=process.environment(root=root), tick=tick)


def _state(root: Path, unit: str) -> dict[str, str]:
    return _properties(_systemctl(root, "show", "--property=ActiveState,Result", "--", unit))


def _is_stopping(root: Path) -> bool:
    """Whether the service manager stops the machine (org.freedesktop.systemd1(5), SystemState)."""
    return _properties(_systemctl(root, "show", "--property=SystemState")).get("SystemState") == "stopping"


def _properties(shown: process.Finished) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in shown.text.splitlines())


@contextlib.contextmanager
def directory(path: Path) -> Iterator[int]:
    """A directory, for openat(2); the last part of the path is no link."""
    with files.opened(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) as fd:
        yield fd


def left(directory: int, name: str, owner: int, limit: int) -> bytes:
    """The contents of a file that a unit left, see rule 2. Raises OSError or KnetstatdError."""
    return files.untrusted(Path(name), limit, owner=owner, directory=directory)
