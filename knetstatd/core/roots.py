# SPDX-License-Identifier: GPL-2.0-or-later
"""What a root is: the directory that a system takes for /. Its absolute links lead to places inside of it, and what lies there
may be anything: a FIFO in a file's place would stop who opens it."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path


def inside(root: Path, path: str) -> Path:
    """Where `path`, as seen by a program whose root directory is `root`, really is; every symlink stays inside `root`.

    Missing parts are kept as they are; a loop ends after 40 links, as in the kernel (path_resolution(7)).
    """
    top, links = os.fspath(root), 0
    parts, done = [p for p in path.split("/") if p not in ("", ".")][::-1], list[str]()
    while parts:
        part = parts.pop()
        if part == "..":
            del done[-1:]
            continue
        done.append(part)
        try:
            target = os.readlink("/".join((top, *done)))
        except FileNotFoundError:
            if ".." in parts:
                continue
            done += parts[::-1]  # nothing is below what is not there
            break
        except (OSError, ValueError):
            continue
        links += 1
        if links > 40:
            break
        done = [] if target.startswith("/") else done[:-1]
        parts += [p for p in target.split("/") if p not in ("", ".")][::-1]
    return root / "/".join(done)


def regular(path: Path | str) -> BufferedReader:
    """Opens a regular file for reading, and waits for nothing. Raises OSError, also for what is no regular file."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
