# SPDX-License-Identifier: GPL-2.0-or-later
"""The modules in a kernel's initrd, read once: 0.3 s for 40 MB.

The answer is kept in a file of ours with our version and the identities of the initrd's files, so that a look costs a stat.
If that file cannot be written, or is damaged, the initrd is read again. A user who may not read the initrd, as the daemon may
be, reads that file, which root's commands and steps keep; it has digests and nothing of the initrd's contents.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from knetstatd import __version__
from knetstatd.formats import initrd
from knetstatd.formats.initrd import Inside
from knetstatd.system import documents, files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from pathlib import Path


@once
def modules(paths: tuple[Path, ...], kernel: str, kinds: tuple[str, ...], directory: Path | None) -> Inside:
    """The modules in an initrd, which may be several files. Raises OSError, Damaged.

    kinds: those that the kernel unpacks.  directory: ours, where the answer is kept in KERNEL.json; None for a process that has
    none.
    """
    if directory is None:
        return initrd.contents(paths, kernel, kinds)
    told = [kind for kind in initrd.OPTIONS if kind in kinds]
    identity = [[__version__], *([*(files.identity(path) or ())] for path in paths), told]
    if (known := _kept(place := directory / f"{kernel}.json", identity)) is not None:
        return known
    inside = initrd.contents(paths, kernel, kinds)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "identity": identity, "copies": dict(inside.copies), "own": inside.own, "refused": dict(inside.refused),
            "init": inside.init, "foreign": inside.foreign,
        }  # fmt: skip
        files.write_json(place, document, durable=False)
    return inside


def _kept(place: Path, identity: list[list[Any]]) -> Inside | None:
    document = documents.read(place)
    try:
        if document is None or document.get("identity").value != identity:
            return None
        own, foreign, init = document.text("own"), document.text("foreign"), document.flag("init")
        return Inside(document.table("copies"), own, document.table("refused"), init, foreign)
    except documents.Malformed:
        return None
