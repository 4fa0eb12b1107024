# SPDX-License-Identifier: GPL-2.0-or-later
"""What the scripts of dkms.conf (PRE_BUILD, POST_BUILD, PRE_INSTALL, POST_INSTALL) said, found in dkms's output and make.log.

And where they name dkms's tree themselves: a build has a private tree, so that what they write there is lost, often in silence.

Rule: dkms 3.0 tells nobody how a script ended. Its last line is then all that shows a failure: a script that goes on after an
error, as configure does, has not failed.

Source: run_build_script() and invoke_command() of dkms 3.0.10 and 3.2.2.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.system import files

if TYPE_CHECKING:
    from pathlib import Path


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
_LIMIT, _LINE = 1 << 18, 1000  # bytes of a file; characters of a line
_SET = re.compile(r"""^[ \t]*((?:PRE|POST)_BUILD)=["']?([^"'\n]+)""", re.MULTILINE)
_WRITERS = "cp|mv|ln|install|mkdir|tee|touch|rsync|dd|rm"
_NAME = r"(?<![\w.-])(?<!:=)%s(?![\w.-])"  # not what stands in for a variable that is not set, ${x:-NAME}
_PATH = re.compile(r"/[\w.+@~/-]+\w")


def ran(log: str, output: str) -> tuple[Hook, ...]:
    """The scripts that ran, by make's log and dkms's own output."""
    logged = [Hook(m[1].upper(), _lines(m[2]), int(m[3])) for m in _LOGGED.finditer(log)]
    return (*logged, *(Hook(m[1].upper(), _lines(m[2])) for m in _PRINTED.finditer(f"{output}\n")))


def ended_build(log: str, output: str) -> Hook | None:
    """The script that ended a build: dkms 3.2 heeds how POST_BUILD ends, 3.0 does not; both need what PRE_BUILD prepares."""
    every = ran(log, output)
    return next((h for h in every if (h.name == "PRE_BUILD" and h.failed) or (h.name == "POST_BUILD" and h.code)), None)


class Named(NamedTuple):
    """A line by which a script writes to dkms's tree by its name. hook: the script's.  file: below the source."""

    hook: str
    file: str
    line: int


def writes_by_name(source: Path, tree: str) -> tuple[Named, ...]:
    """The first such line of each script of a build, as far as shell shows it. tree: dkms's, as dkms.conf would name it."""
    conf = files.text(source / "dkms.conf", _LIMIT) or ""
    writes = re.compile(
        rf"(?:>|\b(?:{_WRITERS})\b).*{_NAME % re.escape(tree)}|^\s*(?:export )?\w+=[\"']?{_NAME % re.escape(tree)}"
    )
    named = []
    for match in _SET.finditer(conf):
        hook, words = match[1], match[2].split()
        if re.search(_NAME % re.escape(tree), match[2]):
            named.append(Named(hook, "dkms.conf", conf.count("\n", 0, match.start()) + 1))
            continue
        script = os.path.normpath(words[0]) if words else ".."
        text = "" if script.startswith(("/", "..")) else files.text(source / script, _LIMIT) or ""
        numbered = ((number, line) for number, line in enumerate(text.splitlines(), 1) if not line.lstrip().startswith("#"))
        named += [Named(hook, names.clean(script, 100), number) for number, line in numbered if writes.search(line[:_LINE])][:1]
    return tuple(named)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(names.clean(line, 300) for line in text.splitlines() if line.strip())
