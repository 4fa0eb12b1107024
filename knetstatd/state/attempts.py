# SPDX-License-Identifier: GPL-2.0-or-later
"""What is stored of failed attempts, one small file for each module and kernel; nothing else is but answers (see there).

Rule 1: losing these files at any time changes no verdict; it only allows another attempt.
Rule 2: an attempt counts for one fingerprint of source, headers and compiler; a new fingerprint starts from zero.
Rule 3: it is written before the work starts (as `interrupted`) and again after a failure, so that a machine that a build
        brings down does not build at every boot for ever.
Rule 4: what a running kernel has refused counts for that boot: the next one asks it again, once. A loading that the machine
        did not survive counts for every boot.
Rule 5: what loading failed at says nothing of building, and the other way round: neither counts for the other.
Rule 6: times are CLOCK_BOOTTIME with the boot they belong to: a clock that is set does nothing, a reboot ends a wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

from knetstatd.core import names, planner
from knetstatd.core.model import Attempt, Kind
from knetstatd.system import files

if TYPE_CHECKING:
    from pathlib import Path

    from knetstatd.core.model import Limits

SCHEMA = 1
_PLACES = ("kernels", "stage", "rehearsals")
# Seconds after a boot, for the administrator of a machine that builds bring down, and how many of them are no accident.
_PEACE, _ACCIDENTS = 600.0, 3


def now() -> float:
    """The clock of all waits: seconds of CLOCK_BOOTTIME, which runs on in suspend and is never set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id(root: Path) -> str:
    """The id of this boot, "" where the kernel does not tell."""
    return (files.text(root / "proc/sys/kernel/random/boot_id", 64) or "").strip()


def path(state: Path, kernel: str, package: str) -> Path:
    """Where the attempts for one module and kernel are kept."""
    return state / "kernels" / kernel / f"{package}.json"


def load(root: Path, state: Path, kernel: str, package: str, fingerprint: str) -> Attempt | None:
    """The remembered attempt, None where there is none, it does not count any more, or the file is damaged."""
    try:
        document = json.loads(files.read(path(state, kernel, package), 1 << 20))
        if document["schema"] != SCHEMA or document["fingerprint"] != fingerprint:
            return None
        same_boot, kind, times = document["boot_id"] == boot_id(root), Kind(document["kind"]), int(document["times"])
        loading = document.get("loading") is True
        if loading and not same_boot and kind is not Kind.INTERRUPTED:
            return None
        crashes = kind is Kind.INTERRUPTED and times > _ACCIDENTS
        return Attempt(
            kind=kind,
            times=times,
            not_before=float(document["not_before"]) if same_boot else _PEACE if crashes else 0.0,
            reason=str(document["reason"]),
            fix=str(document["fix"]),
            evidence=tuple(str(line) for line in document["evidence"]),
            when=float(document["when"]),
            log=str(document["log"]),
            loading=loading,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(root: Path, state: Path, kernel: str, package: str, version: str, fingerprint: str, attempt: Attempt) -> None:
    """Stores an attempt durably. Raises OSError where the state directory cannot be written."""
    target = path(state, kernel, package)
    target.parent.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
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


def remembered(state: Path) -> set[str]:
    """The kernels for which something is kept: attempts, logs, staged artefacts, answers."""
    return {kernel for place in _PLACES for kernel in files.names(state / place) if names.is_kernel(kernel)}


def forget_kernel(state: Path, kernel: str) -> None:
    """Deletes all that is kept for a kernel that is gone."""
    for place in _PLACES:
        shutil.rmtree(state / place / kernel, ignore_errors=True)


def forget(state: Path, kernel: str, package: str) -> None:
    """Drops what is remembered: the next attempt starts from zero."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path(state, kernel, package))
