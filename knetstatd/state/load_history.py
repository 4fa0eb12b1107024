# SPDX-License-Identifier: GPL-2.0-or-later
"""What this boot knows of each package's modules: when the running kernel got them, and which files it has refused.

By the first, somebody's unloading is told from a fresh boot.

Rule 1: a boot knows nothing of the one before: the files lie in /run, one of each sort for each package.
Rule 2: losing them changes no verdict; it only allows another loading.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from typing import TYPE_CHECKING

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from knetstatd.state.paths import Places

_KEPT = 32  # more than anybody asks for
_LIMIT = 1 << 20  # bytes


def known(places: Places, package: str) -> tuple[float, ...]:
    """When a package's modules were loaded in this boot, in seconds of CLOCK_BOOTTIME, the first time first."""
    ours, others = _times(places.loads(package)), _times(places.seen(package))
    forgotten = max((-at for at in ours if at < 0), default=0.0)
    return tuple(sorted(at for at in (*ours, *others) if at > forgotten))


def _times(path: Path) -> tuple[float, ...]:
    """The times in a file; a negative one says that those before it do not count."""
    try:
        times = tuple(map(float, (_text(path) or "").split()))
    except ValueError:
        return ()
    return times if all(map(math.isfinite, times)) else ()


def add(places: Places, package: str, when: float) -> None:
    """The package's modules were loaded. It says nothing if /run cannot be written: see rule 2."""
    _write(places.loads(package), (*_times(places.loads(package)), when))


def _write(path: Path, times: Iterable[float]) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        files.write(path, "".join(f"{one}\n" for one in tuple(times)[-_KEPT:]).encode(), durable=False)


def seen(places: Places, package: str, when: float) -> None:
    """The package's modules are loaded; by somebody else, if no loading of ours is known."""
    if not known(places, package):
        _write(places.seen(package), (when,))


def refuse(places: Places, package: str, paths: Iterable[Path]) -> bool:
    """The running kernel says that these files are not for it. False if it has said so of others in this boot."""
    path = places.refused(package)
    if path.exists():
        return False
    try:
        path.parent.mkdir(exist_ok=True)
        files.write(path, _identities(paths).encode("utf-8", "surrogateescape"), durable=False)
    except OSError:
        return False  # who cannot remember it must not build again and again
    return True


def refused(places: Places, package: str, paths: Iterable[Path]) -> bool:
    """Whether the running kernel has said so of these very files."""
    said = _text(places.refused(package))
    return said is not None and said == _identities(paths)


def _text(path: Path) -> str | None:
    """The text of a file of ours, None if there is none."""
    try:
        return files.untrusted(path, _LIMIT).decode("utf-8", "surrogateescape")
    except (OSError, KnetstatdError):
        return None


def _identities(paths: Iterable[Path]) -> str:
    return "".join(f"{path} {files.identity(path)}\n" for path in paths)


def forget(places: Places, package: str) -> None:
    """The next loading counts as the first: an administrator asks for it."""
    for path in (places.loads(package), places.refused(package)):
        with contextlib.suppress(OSError):
            os.unlink(path)
    if _times(places.seen(package)):  # the daemon's own file, which is not ours to delete
        _write(places.loads(package), (-time.clock_gettime(time.CLOCK_BOOTTIME),))
