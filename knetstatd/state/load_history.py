# SPDX-License-Identifier: GPL-2.0-or-later
"""What this boot knows of each package's modules: when they came into the running kernel, by which somebody's unloading is
told from a fresh boot; and which file that kernel has refused.

Rule 1: a boot knows nothing of the one before: the files lie in /run, one of each sort for each package.
Rule 2: losing them changes no verdict; it only allows another loading.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_KEPT = 32  # more than anybody asks for


def _path(runtime: Path, package: str) -> Path:
    return runtime / "loads" / package


def known(runtime: Path, package: str) -> tuple[float, ...]:
    """When a package's modules were loaded in this boot, in seconds of CLOCK_BOOTTIME, the first time first."""
    try:
        return tuple(sorted(map(float, (files.text(_path(runtime, package)) or "").split())))
    except ValueError:
        return ()


def add(runtime: Path, package: str, when: float) -> None:
    """They were loaded. Nothing is said where /run cannot be written: see rule 2."""
    path = _path(runtime, package)
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        files.write(path, "".join(f"{one}\n" for one in (*known(runtime, package), when)[-_KEPT:]).encode(), durable=False)


def seen(runtime: Path, package: str, when: float) -> None:
    """They are loaded; by somebody else, where nothing is known of it."""
    if not _path(runtime, package).exists():
        add(runtime, package, when)


def refuse(runtime: Path, package: str, paths: Iterable[Path]) -> bool:
    """The running kernel says that these files are not for it. False where it has said so of others in this boot."""
    path = runtime / "refused" / package
    if path.exists():
        return False
    try:
        path.parent.mkdir(exist_ok=True)
        files.write(path, _identities(paths).encode(), durable=False)
    except OSError:
        return False  # who cannot remember it must not build again and again
    return True


def refused(runtime: Path, package: str, paths: Iterable[Path]) -> bool:
    """Whether it has said so of these very files."""
    said = files.text(runtime / "refused" / package)
    return said is not None and said == _identities(paths)


def _identities(paths: Iterable[Path]) -> str:
    return "".join(f"{path} {files.identity(path)}\n" for path in paths)


def forget(runtime: Path, package: str) -> None:
    """The next loading counts as the first: an administrator asks for it."""
    for path in (_path(runtime, package), runtime / "refused" / package):
        with contextlib.suppress(OSError):
            os.unlink(path)
