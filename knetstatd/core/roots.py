# SPDX-License-Identifier: GPL-2.0-or-later
"""What a root is: the directory that a system takes for /. Its absolute links lead to places inside of it."""

from __future__ import annotations

import os
from pathlib import Path


def inside(root: Path, path: str) -> Path:
    """Where `path`, as seen by a program whose root directory is `root`, really is; every symlink stays inside `root`.

    Missing parts are kept as they are; a loop ends after 40 links, as in the kernel (path_resolution(7)).
    """
    parts, done, links = [p for p in path.split("/") if p not in ("", ".")][::-1], Path(root), 0
    while parts:
        part = parts.pop()
        if part == "..":
            done = done.parent if done != root else done
            continue
        step = done / part
        try:
            target = os.readlink(step)
        except (OSError, ValueError):
            done = step
            continue
        links += 1
        if links > 40:
            return step
        if target.startswith("/"):
            done = Path(root)
        parts += [p for p in target.split("/") if p not in ("", ".")][::-1]
    return done
