# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of ours about a kernel or a package that this machine does not have any more.

Rule: losing any of these files changes no verdict (see attempts, rehearsal_results, load_history). So nothing is asked twice.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from knetstatd.core.errors import KnetstatdError
from knetstatd.system import locks

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from knetstatd.state.paths import Places


def find(places: Places, kernels: Container[str], packages: Container[str]) -> list[Path]:
    """Our files and directories about other kernels than these, or about other packages."""
    of_kernels = [path for kernel, path in places.of_kernels() if kernel not in kernels]
    gone = set(of_kernels)
    of_packages = (path for package, path in places.of_packages() if package not in packages)
    return [*of_kernels, *(path for path in of_packages if path.parent not in gone)]


def forget(places: Places, kernels: Container[str], packages: Container[str]) -> None:
    """Deletes what `find` finds, unless a builder is at work. Raises nothing: the next look tries again."""
    if paths := find(places, kernels, packages):
        with contextlib.suppress(KnetstatdError, OSError), locks.locked(places.build_lock, 0.0):
            _delete(places, paths)


def _delete(places: Places, paths: list[Path]) -> None:
    """Deletes paths, and the directories that become empty."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)
        parent = path.parent
        while parent not in (places.state, places.builders):
            try:
                parent.rmdir()
            except OSError:
                break
            parent = parent.parent
