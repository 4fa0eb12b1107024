# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next boot starts, for a user who may not look everywhere: Debian mounts the ESP for root alone.

Rule 1: root, who may look, keeps what it has found; another user goes by that, and not by what he himself may see.
Rule 2: root's answer stands for this boot, and for as long as nothing has changed that everybody may see of the boot loader. If
        there is none, the user's own look stands until root has looked.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Any

from knetstatd.boot import bootloader
from knetstatd.boot.bootloader import Basis, Next
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.state.paths import Places


def settled(root: Path, places: Places, mine: Next) -> tuple[Next, str]:
    """The answer to go by, and what root is to look at first; "" for nothing. mine: what this user's own look says."""
    esps = [path for path in (files.inside(root, f"/{place}") for place in bootloader.ESP) if os.path.isdir(path)]
    inputs = bootloader.inputs(root)
    seen = [path for path in inputs if not any(path.is_relative_to(esp) for esp in esps if esp.name == "efi")]
    mark = [[*(files.identity(path) or ())] for path in (*esps, *seen)]
    there = [path for path in (*esps, *inputs) if os.path.lexists(path)]
    if os.geteuid() == 0:
        if any(os.path.exists(path) and not os.stat(path).st_mode & stat.S_IROTH for path in there):
            _keep(places, mark, mine)
        return mine, ""
    closed = [path for path in there if not os.access(path, os.R_OK)]
    if not closed:
        return mine, ""
    known = _known(places, mark)
    return (known, "") if known is not None else (mine, f"{closed[0]} {hash(str(mark))}")


def _keep(places: Places, mark: list[list[Any]], answer: Next) -> None:
    texts = {name: getattr(answer, name) for name in ("release", "source", "detail")}
    if _known(places, mark) == Next(**texts, basis=answer.basis):
        return
    with contextlib.suppress(OSError):
        places.next_boot.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(places.next_boot, {"mark": mark, **texts, "basis": answer.basis.value}, durable=False)


def _known(places: Places, mark: list[list[Any]]) -> Next | None:
    """What root has found, if that still stands; without what an entry gives the kernel."""
    document = documents.read(places.next_boot)
    try:
        if document is None or document.get("mark").value != mark:
            return None
        release, source, detail = (document.text(name) for name in ("release", "source", "detail"))
        return Next(release, source, detail, Basis(document.text("basis")))
    except (documents.Malformed, ValueError):
        return None
