# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of a step that fails, and what is told of it.

Rules:

1. An attempt is kept before its work starts: a step that brings the machine down must not be tried at every boot for ever.
2. A failure is remembered before it is told, and what is told carries cause, evidence and cure.
3. While a package transaction is open nothing is final, and on a full disk nothing but the disk is the cause.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from typing import TYPE_CHECKING

from knetstatd.core.errors import BuildError, KnetstatdError
from knetstatd.core.model import Action, Attempt, Kind, Retry
from knetstatd.state import attempts
from knetstatd.verdict import judge

if TYPE_CHECKING:
    from knetstatd.core.model import Answer
    from knetstatd.system.journal import Journal
    from knetstatd.verdict.observe import Machine, Seen

_INTERRUPTED = "the last attempt was interrupted (killed, or the machine went down)"
_OF_SYSTEM = {errno.ENOSPC: Kind.DISK, errno.EROFS: Kind.READ_ONLY, errno.ENOMEM: Kind.MEMORY}
_FULL = 1 << 20  # bytes; with less than this free, whatever failed failed for want of room


def classified(error: OSError | KnetstatdError) -> BuildError:
    """An error of a step as the failure that it is."""
    if isinstance(error, BuildError):
        return error
    if isinstance(error, KnetstatdError):
        return BuildError(Kind.PUBLISH, error.what, error.where, error.fix)
    kind = _OF_SYSTEM.get(error.errno or 0, Kind.PUBLISH)
    return BuildError(kind, error.strerror or str(error), os.fspath(error.filename or ""))


class Failures:
    """The failures of one run. forgetful: one could not be remembered, and whoever started us would start the next at once."""

    def __init__(self, machine: Machine, journal: Journal) -> None:
        self._machine = machine
        self._journal = journal
        self.forgetful = False

    def begun(self, seen: Seen, action: Action) -> None:
        """Remembers, before a step, that it was interrupted. Raises OSError, but not for a loading, which takes no room."""
        fix = f"journalctl -b -1 -e may show why; to try it again: knetstatctl build {seen.observation.kernel}"
        interrupted = Attempt(Kind.INTERRUPTED, reason=_INTERRUPTED, fix=fix, loading=action is Action.LOAD)
        try:
            self._remember(seen, attempts.following(seen.observation.attempt, interrupted, self._machine.limits))
        except OSError:
            if action is not Action.LOAD:
                raise

    def withdrawn(self, seen: Seen) -> None:
        """Forgets a step that was not begun after all: what was remembered before it stands again."""
        o = seen.observation
        if o.attempt is None:
            attempts.forget(self._machine.places, o.kernel, o.package)
            return
        with contextlib.suppress(OSError):
            self._remember(seen, o.attempt)

    def refused(self, seen: Seen, answer: Answer) -> None:
        """Remembers what a kernel said in a rehearsal: the same source is not built again in the hope that it says otherwise.

        Raises OSError.
        """
        if seen.source is not None:
            mark = seen.fingerprint or self._machine.fingerprint(
                seen.observation.kernel, seen.observation.package, seen.source, seen.headers.path
            )
            refused = Attempt(Kind.REFUSED, reason=answer.reason, fix=answer.fix, evidence=answer.words)
            self._remember(seen._replace(fingerprint=mark), attempts.following(None, refused, self._machine.limits))

    def failed(self, seen: Seen, action: Action, error: BuildError) -> None:
        """Remembers and tells that a step failed."""
        o = seen.observation
        kind, fix = self._kind(error), error.fix or f"Run: knetstatctl explain {o.kernel}"
        log = os.fspath(self._machine.places.log(o.kernel, o.package))
        failed = Attempt(
            kind, reason=error.what, fix=fix, evidence=error.evidence, log=log if error.where == log else "",
            loading=action is Action.LOAD,
        )  # fmt: skip
        attempt = attempts.following(o.attempt, failed, self._machine.limits)
        try:
            self._remember(seen, attempt)
        except OSError:  # a full disk must not hide the reason
            self.forgetful = True
        if kind is Kind.REHEARSAL and attempt.times > 1:
            return  # said once; the verdict has the latest reason
        failure, outlook = judge.failure(attempt)
        self._journal.log(
            failure, f"{o.package} {o.version} for {o.kernel}: {error.what}; {outlook}",
            package=o.package, version=o.version, kernel=o.kernel,
            kind=kind, reason=error.what, fix=fix, evidence="\n".join(error.evidence), log=attempt.log, attempt=attempt.times,
        )  # fmt: skip

    def _kind(self, error: BuildError) -> Kind:
        kind = Kind(error.kind)
        if self._machine.refresh_locks() and kind.retry is Retry.NEVER:
            # Half of the headers may not be unpacked yet, or dkms.conf just replaced: not an honest attempt.
            return Kind.DURING_TRANSACTION
        return Kind.DISK if shutil.disk_usage(self._machine.places.state).free < _FULL else kind

    def _remember(self, seen: Seen, attempt: Attempt) -> None:
        o, machine = seen.observation, self._machine
        attempts.save(machine.root, machine.places, o.kernel, o.package, o.version, seen.fingerprint, attempt)
