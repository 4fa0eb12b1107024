# SPDX-License-Identifier: GPL-2.0-or-later
"""From what dkms and make printed to a cause, the lines that show it, and a cure.

Rule 1: the first pattern that fits decides; the order is from the most specific cause to the most general.
Rule 2: evidence is quoted from the log, never made up.
Rule 3: an unknown failure is called a compile failure with its last lines, and says so.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from . import files, names
from .model import Kind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


class Cause(NamedTuple):
    """Why a build failed."""

    kind: Kind
    reason: str
    fix: str
    evidence: tuple[str, ...]


class RunningKernelRead(NamedTuple):
    """A line of a module's build files that asks for the running kernel instead of the target.

    variable: the make variable it sets, "" for none.  passed: whether dkms.conf sets that variable for make.
    """

    file: str
    line: int
    text: str
    variable: str
    passed: bool


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    kind: Kind
    reason: str
    fix: str


def _rule(pattern: str, kind: Kind, reason: str, fix: str) -> _Rule:
    return _Rule(re.compile(pattern, re.MULTILINE), kind, reason, fix)


_PORT = "The module's source does not fit this kernel: get a newer version of it (its distributor or author), then dkms add it"

# reason and fix may use {1}, {2}: the pattern's groups.
_RULES = (
    _rule(
        r"No space left on device",
        Kind.DISK,
        "the disk is full",
        "Free space; `df -h /var /tmp /boot /lib/modules` shows where",
    ),
    _rule(
        r"Read-only file system", Kind.READ_ONLY, "a file system is read-only", "Remount it writable, or look at dmesg for why"
    ),
    _rule(
        r"(?:virtual memory exhausted|Cannot allocate memory|out of memory|internal compiler error: Killed|\(program cc1\)"
        r"|fatal error: Killed signal terminated)",
        Kind.MEMORY,
        "the build ran out of memory",
        "Give the build more memory; `journalctl -k` shows what was killed",
    ),
    _rule(
        r": line \d+: +\d+ (?:Killed|Terminated)\b|\*\*\* \[.*\] (?:Killed|Terminated)\b|exit status: 1(?:37|43)\b",
        Kind.INTERRUPTED,
        "a program of the build was killed",
        "`journalctl -k` shows whether memory ran out",
    ),
    _rule(
        r"(?:^|[\s/])([^\s/:]+): (?:command )?not found$|^make.*: (\S*(?:gcc|clang)\S*): No such file",
        Kind.COMPILER,
        "a program that the build needs is missing: {1}",
        "Install it: apt install {1}",
    ),
    _rule(
        r'ERROR: modpost: "(\S+)" \[(\S+)\] undefined!',
        Kind.SYMBOL,
        "the kernel does not export the symbol {1}",
        _PORT,
    ),
    _rule(
        r'ERROR: modpost: GPL-incompatible module (\S+) uses GPL-only symbol [\'"](\S+?)[\'"]',
        Kind.SYMBOL,
        "the module's licence does not allow the GPL-only symbol {2}",
        _PORT,
    ),
    _rule(
        r"ERROR: modpost: module (\S+) uses symbol (\S+) from namespace (\S+), but does not import it",
        Kind.SYMBOL,
        "symbol {2} is in namespace {3}, which the module does not import",
        _PORT,
    ),
    _rule(
        r"^(\S+?):(\d+):(?:\d+:)? (?:fatal )?error: (\S+\.h): No such file or directory",
        Kind.API,
        "{1} line {2} includes {3}, which this kernel does not have",
        _PORT,
    ),
    _rule(
        r"^(\S+?):(\d+):(?:\d+:)? error: (implicit declaration of function .*|.* has no member named .*|.* undeclared.*"
        r"|too (?:few|many) arguments.*|passing argument .*|incompatible type.*|unknown type name .*|initialization of .*"
        r"|conflicting types.*|assignment to .*)",
        Kind.API,
        "{1} line {2}: {3}",
        _PORT,
    ),
    _rule(
        r"^(\S+?):(\d+):(?:\d+:)? (?:fatal )?error: (.*)",
        Kind.COMPILE,
        "{1} line {2}: {3}",
        "Correct the source, or get a newer version",
    ),
    _rule(
        r"Your kernel headers for kernel (\S+) cannot be found|kernel headers .* cannot be found",
        Kind.HEADERS,
        "dkms does not find the kernel's headers",
        "Install the headers of this kernel",
    ),
    _rule(
        r"^make.*\*\*\* (/lib/modules/\S+/build): No such file or directory",
        Kind.HEADERS,
        "the module's Makefile looks for headers in {1}, which does not exist",
        "Install the headers of that kernel, or correct the Makefile",
    ),
    _rule(
        r"No rule to make target [`'](\S+)'",
        Kind.COMPILE,
        "make does not know how to make {1}",
        "Correct the module's Makefile",
    ),
    _rule(r"Makefile:(\d+): \*\*\* (.*)\.  Stop", Kind.COMPILE, "make stopped: {2}", "Correct the module's Makefile"),
    _rule(r"^make.*\*\*\* (.*)$", Kind.COMPILE, "make failed: {1}", "The log has all of it"),
)


def classify(log: str, dkms_output: str, code: int) -> Cause:
    """The cause of a failed `dkms build`, from make's log, dkms's own output and dkms's exit code (dkms.in lists them)."""
    if code == 77:
        lines = _evidence(dkms_output, re.compile(r"BUILD_EXCLUSIVE|does not match"))
        reason = "dkms.conf's BUILD_EXCLUSIVE says that this module is not for this kernel"
        return Cause(Kind.EXCLUDED, reason, "If it should be, correct BUILD_EXCLUSIVE_* in dkms.conf", lines)
    for text in (_telling(log), _telling(dkms_output)):
        for rule in _RULES:
            if found := rule.pattern.search(text):
                groups = [names.clean(_BUILD.sub("", group), 160) for group in found.groups() if group is not None]
                reason, fix = (_fill(part, groups) for part in (rule.reason, rule.fix))
                return Cause(rule.kind, reason, fix, _evidence(text, rule.pattern))
    if code == 7:
        reason = "make succeeded but did not make the module that dkms.conf names"
        fix = "Correct BUILT_MODULE_NAME or BUILT_MODULE_LOCATION in dkms.conf"
        return Cause(Kind.NO_MODULE, reason, fix, last_lines(dkms_output, 4))
    if code == 3 and "already been built" in dkms_output:
        return Cause(Kind.FOREIGN_DKMS, "another dkms was in the way", "", last_lines(dkms_output, 4))
    if code in (2, 8) or "dkms.conf" in dkms_output:
        return Cause(Kind.CONF, "dkms does not accept the module's dkms.conf", "Correct dkms.conf", last_lines(dkms_output, 4))
    return Cause(
        Kind.COMPILE, f"the build failed (dkms exit code {code})", "The log has all of it", last_lines(log or dkms_output, 6)
    )


_WORDS = re.compile(r"error|\*\*\*|not found|no space|read-only|memory|killed|terminated|exit status|headers", re.IGNORECASE)


def _telling(text: str) -> str:
    """The lines that a rule could fit, cut: a log may be megabytes, and one line of it a megabyte."""
    return "\n".join(line for line in (line[:400] for line in text.splitlines()) if _WORDS.search(line))


# Where dkms compiles; what follows is the path that the module's author knows.
_BUILD = re.compile(r"/\S*/tree/[^/\s]+/[^/\s]+/build/")


def _fill(template: str, groups: list[str]) -> str:
    for number, group in enumerate(groups, 1):
        template = template.replace(f"{{{number}}}", group)
    return template


def _evidence(text: str, pattern: re.Pattern[str], most: int = 3) -> tuple[str, ...]:
    lines = []
    for found in pattern.finditer(text):
        start = text.rfind("\n", 0, found.start()) + 1
        end = text.find("\n", found.end())
        line = names.clean(text[start : end if end >= 0 else len(text)].splitlines()[0])
        if line not in lines:
            lines.append(line)
        if len(lines) == most:
            break
    return tuple(lines)


def last_lines(text: str, count: int) -> tuple[str, ...]:
    """The last lines of a log that say anything, fit for a journal entry."""
    return tuple(names.clean(line) for line in text.splitlines() if line.strip())[-count:]


_SETS = re.compile(r"^\s*(?:export\s+|override\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*(?:\?|:|::|\+)?=")
_BUILD_FILES = re.compile(r"(?:(?:GNU)?[Mm]akefile|Kbuild|.*\.mk|configure|dkms\.conf|.*\.sh)")


def running_kernel_reads(source: Path, passed: Collection[str]) -> tuple[RunningKernelRead, ...]:
    """The lines of a module's build files that read `uname -r`, those that decide first.

    passed: the make variables that dkms.conf sets; a `?=` or `=` of one of those is overruled by it.
    """
    found = [read for path in _build_files(source) for read in _reads(source, path, passed)]
    return tuple(sorted(found, key=lambda r: (r.passed, not r.variable, r.file, r.line)))


def _build_files(source: Path) -> Iterator[Path]:
    count = 0
    for where, dirs, found in os.walk(source):
        dirs[:] = sorted(d for d in dirs if d != ".git")
        for name in sorted(found):
            if _BUILD_FILES.fullmatch(name):
                yield source.__class__(where) / name
                count += 1
        if count > 200:
            return


def _reads(source: Path, path: Path, passed: Collection[str]) -> Iterator[RunningKernelRead]:
    for number, line in enumerate((files.text(path) or "").splitlines(), 1):
        if line.lstrip().startswith("#") or not re.search(r"\buname\s+-\w*r", line):
            continue
        sets = _SETS.match(line)
        variable = sets[1] if sets else ""
        yield RunningKernelRead(
            os.path.relpath(path, source), number, names.clean(line.strip(), 200), variable, variable in passed
        )
