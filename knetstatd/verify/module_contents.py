# SPDX-License-Identifier: GPL-2.0-or-later
"""Is this the same module file? Its contents decide: what is left once it is unpacked and its signature is taken off.

Rule: nothing in the file stands for the file. A build ID stays what it was whatever happened to the code beside it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from knetstatd.core.errors import ModuleFileError
from knetstatd.system import files
from knetstatd.verify import module_readings


def digest(path: Path) -> files.Digest:
    """The digests of a module file. Raises ModuleFileError if it cannot be read."""
    return module_readings.read(path).digest


def has(path: Path, known: files.Digest) -> bool:
    """Whether a file has those contents; no if it cannot be read."""
    try:
        return digest(path).contents == known.contents
    except ModuleFileError:
        return False


def are_same(one: Path, other: Path) -> bool:
    """Whether two files have the same contents; no if one cannot be read."""
    mine, others = files.identity(one), files.identity(other)
    if mine is None or others is None:
        return False
    return mine == others or _compared(os.fspath(one), mine, os.fspath(other), others)


@functools.lru_cache(maxsize=64)  # several checks of one proof ask the same
def _compared(one: str, mine: files.Identity, other: str, others: files.Identity) -> bool:
    try:
        if mine.size == others.size and module_readings.are_equal(Path(one), Path(other)):
            return True
        return digest(Path(one)).contents == digest(Path(other)).contents
    except (OSError, ModuleFileError):
        return False
