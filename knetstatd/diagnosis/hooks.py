# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scripts of dkms.conf (PRE_BUILD, POST_BUILD, PRE_INSTALL, POST_INSTALL) said, found in dkms's output and make.log.

Rule: dkms 3.0 tells nobody how a script ended. Its last line is then all that shows a failure: a script that goes on after an
error, as configure does, has not failed.

Source: run_build_script() and invoke_command() of dkms 3.0.10 and 3.2.2.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from knetstatd.core import names


class Hook(NamedTuple):
    """One run of a script. name: as dkms.conf has it.  lines: what it said.  code: its exit status, None if nobody knows."""

    name: str
    lines: tuple[str, ...]
    code: int | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        if self.code is not None:
            return self.code != 0
        return bool(self.lines) and _TROUBLE.search(self.lines[-1]) is not None

    @property
    def denied(self) -> str:
        """The line that says that it was not allowed to do something, "" if there is none."""
        return next((line for line in self.lines if _DENIED.search(line)), "")

    @property
    def place(self) -> str:
        """The directory in which it was not allowed to write, "" if that line names none."""
        match = _PATH.search(self.denied)
        return os.path.dirname(match[0].rstrip("/")) if match else ""


_NAMES = "pre_build|post_build|pre_install|post_install"
_PRINTED = re.compile(
    rf"^Running the ({_NAMES}) script:\n((?:.*\n)*?)"
    r"(?=(?:Building module| *Cleaning build area|depmod| - |Running the |\S+\.ko\S*:$)|\Z)",
    re.MULTILINE,
)
_LOGGED = re.compile(rf"^Running the ({_NAMES}) script\n# command: .*\n((?:.*\n)*?)# exit code: (\d+)$", re.MULTILINE)
_DENIED = re.compile(r"Read-only file system|Permission denied|Operation not permitted")
_TROUBLE = re.compile(rf"{_DENIED.pattern}|\berror\b|not found$|No such file or directory|\bcannot ", re.IGNORECASE)
_PATH = re.compile(r"/[\w.+@~/-]+\w")


def ran(log: str, output: str) -> tuple[Hook, ...]:
    """The scripts that ran, by make's log and dkms's own output."""
    logged = [Hook(m[1].upper(), _lines(m[2]), int(m[3])) for m in _LOGGED.finditer(log)]
    return (*logged, *(Hook(m[1].upper(), _lines(m[2])) for m in _PRINTED.finditer(f"{output}\n")))


def ended_build(log: str, output: str) -> Hook | None:
    """The script that ended a build: dkms 3.2 heeds how POST_BUILD ends, 3.0 does not; both need what PRE_BUILD prepares."""
    every = ran(log, output)
    return next((h for h in every if (h.name == "PRE_BUILD" and h.failed) or (h.name == "POST_BUILD" and h.code)), None)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(names.clean(line, 300) for line in text.splitlines() if line.strip())
