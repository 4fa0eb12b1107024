# SPDX-License-Identifier: GPL-2.0-or-later
"""In what the installed dkms differs from others: read in its program, a script, which is not run.

Sources: read_conf and safe_source of dkms 3.0.10 and 3.2.2.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from pathlib import Path

_PLACES = ("/usr/sbin/dkms", "/usr/bin/dkms")
_LIMIT = 1 << 20  # bytes


class Program(NamedTuple):
    """strips_cr: takes a carriage return from the end of each value.  by_kernel: reads /etc/dkms/PACKAGE--KERNEL.conf."""

    strips_cr: bool = False
    by_kernel: bool = True


@once
def program(root: Path) -> Program:
    """What dkms of the system under `root` does. Without one, or if its program is another one: what most do."""
    for place in _PLACES:
        path = files.inside(root, place)
        if identity := files.identity(path):
            return _read(path, identity)
    return Program()


@functools.lru_cache(maxsize=4)
def _read(path: Path, identity: files.Identity) -> Program:
    text = files.text(path, _LIMIT) or ""
    return Program("%$CR}" in text, "/$module--$1.conf" in text or "/$module.conf" not in text)
