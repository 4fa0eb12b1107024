# SPDX-License-Identifier: GPL-2.0-or-later
"""When each package's modules came into the running kernel: by that somebody's unloading is told from a fresh boot.

Rule 1: a boot knows nothing of the one before: the files lie in /run, one for each package.
Rule 2: losing them changes no verdict; it only allows another loading.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from . import files

if TYPE_CHECKING:
    from pathlib import Path

_KEPT = 32  # more than anybody asks for


def _path(runtime: Path, module: str) -> Path:
    return runtime / "loads" / module


def known(runtime: Path, module: str) -> tuple[float, ...]:
    """When a package's modules were loaded in this boot, in seconds of CLOCK_BOOTTIME, the first time first."""
    try:
        return tuple(sorted(map(float, (files.text(_path(runtime, module)) or "").split())))
    except ValueError:
        return ()


def add(runtime: Path, module: str, when: float) -> None:
    """They were loaded. Nothing is said where /run cannot be written: see rule 2."""
    path = _path(runtime, module)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        files.write(path, "".join(f"{one}\n" for one in (*known(runtime, module), when)[-_KEPT:]).encode(), durable=False)


def seen(runtime: Path, module: str, when: float) -> None:
    """They are loaded; by somebody else, where nothing is known of it."""
    if not _path(runtime, module).exists():
        add(runtime, module, when)


def forget(runtime: Path, module: str) -> None:
    """The next loading counts as the first: an administrator asks for it."""
    with contextlib.suppress(OSError):
        os.unlink(_path(runtime, module))
