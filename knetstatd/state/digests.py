# SPDX-License-Identifier: GPL-2.0-or-later
"""What the modules that we published are: a digest for each, kept apart from DKMS's own copy.

Rule 1: losing these files changes no verdict by itself: the installed file is then compared with DKMS's copy alone.
Rule 2: a digest counts for as long as DKMS's copy is the file that it was. Who builds anew by dkms makes another one.
Rule 3: a remark counts for as long as nobody has installed the package anew: dkms sets its mark for that anew, too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from knetstatd.state.paths import Places

SCHEMA = 1


class Remark(NamedTuple):
    """What a publication could not do, and plain dkms does not fail for either. reason: a sentence.  fix: a command, or ""."""

    reason: str
    fix: str


def save(
    places: Places, kernel: str, package: str, copies: Mapping[Path, files.Digest], remarks: Sequence[Remark] = ()
) -> None:
    """Keeps the digests of DKMS's copies and what is to be said of them, durably.

    Raises OSError if the state directory cannot be written.
    """
    target = places.digests(kernel, package)
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {copy.name: {**known._asdict(), "copy": mark(copy)} for copy, known in copies.items()}
    said = [remark._asdict() for remark in remarks]
    installed = next((_installed(copy.parent) for copy in copies), "")
    files.write_json(target, {"schema": SCHEMA, "modules": document, "remarks": said, "installed": installed})


def of(places: Places, kernel: str, package: str, copy: Path | None) -> files.Digest | None:
    """What was kept of one of DKMS's copies; None if there is nothing, or it was another file."""
    if copy is None:
        return None
    document = documents.read(places.digests(kernel, package))
    try:
        if document is None or document.integer("schema") != SCHEMA:
            return None
        known = document.get("modules").get(copy.name)
        digest = files.Digest(known.text("file"), known.text("contents"))
        return digest if known.text("copy") == mark(copy) else None
    except documents.Malformed:
        return None


def remarks(places: Places, kernel: str, package: str, directory: Path) -> tuple[Remark, ...]:
    """What was kept to be said of a publication; nothing if somebody has published since.

    directory: DKMS's, with the modules of the build that is installed.
    """
    document = documents.read(places.digests(kernel, package))
    try:
        if document is None or document.integer("schema") != SCHEMA or "remarks" not in document:
            return ()
        said = tuple(Remark(one.text("reason"), one.text("fix")) for one in document.items("remarks"))
        return said if said and document.text("installed") == _installed(directory) else ()
    except documents.Malformed:
        return ()


def _installed(directory: Path) -> str:
    """What changes if dkms installs a build anew: its mark, PACKAGE/kernel-KERNEL-ARCH. directory: the build's modules."""
    build = directory.parent
    try:
        seen = os.lstat(build.parents[2] / f"kernel-{build.parent.name}-{build.name}")
    except (OSError, IndexError):
        return ""
    return f"{seen.st_ino} {seen.st_ctime_ns}"


def mark(copy: Path) -> str:
    """What changes if somebody writes the file. The number of its device may be another one after a boot."""
    seen = files.identity(copy)
    return "" if seen is None else " ".join(str(part) for part in seen[1:])
