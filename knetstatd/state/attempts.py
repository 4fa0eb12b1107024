# SPDX-License-Identifier: GPL-2.0-or-later
"""The failed attempts that are remembered, one small file for each package and kernel.

Rule 1: losing these files at any time changes no verdict; it only allows another attempt.
Rule 2: an attempt counts for one fingerprint of source, headers and compiler; a new fingerprint starts from zero.
Rule 3: an attempt is written before the work starts (as `interrupted`) and again after a failure. So a machine that a build
        brings down does not build at every boot for ever.
Rule 4: a refusal by the running kernel counts for that boot; the next boot asks it again, once. If the machine did not survive
        a loading, that counts for every boot.
Rule 5: a failure to load says nothing of building, and the other way round: neither counts for the other.
Rule 6: times are CLOCK_BOOTTIME with the boot they belong to: setting the clock does nothing, a reboot ends a wait.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from knetstatd.core import planner
from knetstatd.core.model import Attempt, Kind
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.core.model import Limits
    from knetstatd.state.paths import Places
    from knetstatd.system.documents import Node

SCHEMA = 1
# Seconds after a boot, for the administrator of a machine that builds bring down, and how many of them are no accident.
_PEACE, _ACCIDENTS = 600.0, 3


def now() -> float:
    """The clock of all waits: seconds of CLOCK_BOOTTIME, which runs on in suspend and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id(root: Path) -> str:
    """The id of this boot, "" if the kernel does not tell."""
    return (files.text(files.of_kernel(root, "/proc/sys/kernel/random/boot_id"), 64) or "").strip()


def load(root: Path, places: Places, kernel: str, package: str, fingerprint: str) -> Attempt | None:
    """The remembered attempt, None if there is none, it does not count any more, or the file is damaged."""
    document = documents.read(places.attempt(kernel, package))
    try:
        if document is None or document.integer("schema") != SCHEMA or document.text("fingerprint") != fingerprint:
            return None
        return _counted(_parse(document), same_boot=document.text("boot_id") == boot_id(root))
    except documents.Malformed:
        return None


def _parse(document: Node) -> Attempt:
    return Attempt(
        kind=document.word("kind", Kind),
        times=document.integer("times"),
        not_before=document.number("not_before"),
        reason=document.text("reason"),
        fix=document.text("fix"),
        evidence=document.texts("evidence"),
        when=document.number("when"),
        log=document.text("log"),
        loading=document.flag("loading"),
    )


def _counted(attempt: Attempt, *, same_boot: bool) -> Attempt | None:
    """The attempt as it counts in this boot, None if it does not."""
    if same_boot:
        return attempt
    interrupted = attempt.kind is Kind.INTERRUPTED
    if attempt.loading and not interrupted:
        return None
    return attempt._replace(not_before=_PEACE if interrupted and attempt.times > _ACCIDENTS else 0.0)


def save(root: Path, places: Places, kernel: str, package: str, version: str, fingerprint: str, attempt: Attempt) -> None:
    """Stores an attempt durably. Raises OSError if the state directory cannot be written."""
    target = places.attempt(kernel, package)
    target.parent.mkdir(parents=True, exist_ok=True)
    document = {
        **attempt._asdict(),
        "schema": SCHEMA,
        "boot_id": boot_id(root),
        "fingerprint": fingerprint,
        "package": package,
        "version": version,
        "kernel": kernel,
    }
    files.write_json(target, document)


def following(before: Attempt | None, failed: Attempt, limits: Limits) -> Attempt:
    """`failed`, counted after `before`, with the time before which no other may start.

    The first interruptions wait for nothing: the usual cause is a restart, and the next look should simply go on.
    """
    same = before is not None and (before.kind, before.loading) == (failed.kind, failed.loading)
    count = before.times if before is not None and same else 0
    free = failed.kind is Kind.INTERRUPTED and count < _ACCIDENTS
    delay = 0.0 if free else planner.backoff(count + 1, limits)
    return failed._replace(times=count + 1, not_before=now() + delay, when=time.time())


def forget(places: Places, kernel: str, package: str) -> None:
    """Deletes what is remembered: the next attempt starts from zero."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(places.attempt(kernel, package))
