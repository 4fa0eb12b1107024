# SPDX-License-Identifier: GPL-2.0-or-later
"""Is this the same module file? Its contents decide: what is left once it is unpacked and its signature is taken off.

Rule: nothing in the file stands for the file. A build ID stays what it was whatever happened to the code beside it.
"""

from __future__ import annotations

import filecmp
import functools
import os
from pathlib import Path

from knetstatd.core import roots
from knetstatd.core.errors import Damaged, KnetstatdError, ModuleFileError
from knetstatd.formats import compression, module_file
from knetstatd.system import files


def digest(path: Path) -> files.Digest:
    """The digests of a module file. Raises OSError, KnetstatdError if it is too large or is no module."""
    import hashlib  # 3 MB; only if something is compared

    data = files.read(path, compression.LIMIT)
    try:
        contents = module_file.unsigned(data)
    except Damaged as e:
        raise ModuleFileError(str(e), os.fspath(path)) from e
    whole = hashlib.sha256(data).hexdigest()
    return files.Digest(whole, whole if contents == data else hashlib.sha256(contents).hexdigest())


def has(path: Path, known: files.Digest) -> bool:
    """Whether a file has those contents; no if it cannot be read."""
    import hashlib

    try:
        with roots.regular(path) as f:
            if hashlib.file_digest(f, "sha256").hexdigest() == known.file:
                return True
        return digest(path).contents == known.contents
    except (OSError, ValueError, KnetstatdError):
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
        if mine.size == others.size and filecmp.cmp(one, other, shallow=False):
            return True
        return module_file.contents(Path(one)) == module_file.contents(Path(other))
    except (OSError, KnetstatdError):
        return False
