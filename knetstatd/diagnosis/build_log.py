# SPDX-License-Identifier: GPL-2.0-or-later
"""From what dkms and make printed to a cause, the lines that show it, and a cure.

Rule 1: the first pattern that fits decides (see build_rules).
Rule 2: evidence is quoted from the log, never made up.
Rule 3: an unknown failure is called a compile failure with its last lines, and says so.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from knetstatd.core import names
from knetstatd.core.model import Kind
from knetstatd.diagnosis import hooks
from knetstatd.diagnosis.build_rules import RULES, Cure


class Cause(NamedTuple):
    """Why a build failed. subject: the symbol, header, identifier, program or option that it is about, "" for none.

    fix: the cure in words.  cure: which one that is.
    """

    kind: Kind
    reason: str
    fix: str
    evidence: tuple[str, ...]
    subject: str = ""
    cure: Cure = Cure.AS_SAID


_NEEDED = re.compile(r"missing BUILD_DEPENDS: ?(.+?)\.?$", re.MULTILINE)


def classify(log: str, dkms_output: str, code: int) -> Cause:
    """The cause of a failed `dkms build`, from make's log, dkms's own output and dkms's exit code (dkms.in lists them)."""
    if code == 77:
        lines = _evidence(dkms_output, re.compile(r"BUILD_EXCLUSIVE|does not match"))
        reason = "dkms.conf's BUILD_EXCLUSIVE says that this module is not for this kernel"
        return Cause(Kind.EXCLUDED, reason, "If it should be, correct BUILD_EXCLUSIVE_* in dkms.conf", lines)
    if code in (3, 4) and (cause := _tree(dkms_output)):
        return cause
    if needed := _NEEDED.search(dkms_output):
        return lacks(needed[1], dkms_output)
    if (failed := hooks.ended_build(log, dkms_output)) and "No space left" not in "".join(failed.lines):
        return _script(failed)
    for text in (_telling(log), _telling(dkms_output)):
        for rule in RULES:
            if (match := _match(rule.pattern, text)) and rule.counts(text, match.start()):
                groups = [names.clean(_BUILD.sub("", group), 160) for group in match.groups() if group is not None]
                reason, fix, subject = (_fill(part, groups) for part in (rule.reason, rule.fix, rule.subject))
                return Cause(rule.kind, reason, fix, _evidence(text, rule.pattern, match.start()), subject, rule.cure)
    if code == 7 and not log.strip():  # what make has made, and its log, are gone: dkms has one directory for all its runs
        reason = "another dkms built the same module at the same time, and has emptied the directory"
        return Cause(Kind.FOREIGN_DKMS, reason, "When no other dkms runs, build again", last_lines(dkms_output, 4))
    if code == 7:
        reason = "make succeeded but did not make the module that dkms.conf names"
        fix = "Correct BUILT_MODULE_NAME or BUILT_MODULE_LOCATION in dkms.conf"
        return Cause(Kind.NO_MODULE, reason, fix, last_lines(dkms_output, 4))
    if code in (2, 8) or "dkms.conf" in dkms_output:
        return Cause(Kind.CONF, "dkms does not accept the module's dkms.conf", "Correct dkms.conf", last_lines(dkms_output, 4))
    return Cause(
        Kind.COMPILE, f"the build failed (dkms exit code {code})", "The log has all of it", last_lines(log or dkms_output, 6)
    )


def lacks(needed: str, text: str) -> Cause:
    """The failure of a package that is built after others (BUILD_DEPENDS), which are not there. text: what was said."""
    reason = f"it is built after the DKMS module {names.clean(needed, 160)}, which this kernel does not have yet"
    fix = "Guard that one, too (`modules` in knetstatd.toml), or install it with dkms"
    return Cause(Kind.PACKAGES, reason, fix, last_lines(text, 2), names.clean(needed, 160))


def _script(hook: hooks.Hook) -> Cause:
    """The failure of a script of the build; what the compiler missed after PRE_BUILD is its consequence."""
    line = hook.lines[-1] if hook.lines else f"exit status {hook.code}"
    fix = f"Correct the script that {hook.name} names in dkms.conf"
    if hook.denied and hook.place:
        own = f"TemporaryFileSystem={hook.place}:mode=1777"
        fix = f"Give the script a directory of its own there: systemctl edit knetstatd-compile@.service, with {own}"
    return Cause(Kind.CONF, f"{hook.name} of dkms.conf failed: {names.clean(line, 160)}", fix, hook.lines[-3:], hook.name)


def _tree(output: str) -> Cause | None:
    """A fault of dkms's own tree, which no change of the module heals."""
    if "Read-only file system" in output or "No space left" in output:
        return None
    if "already been built" in output or "is already built" in output:
        reason = "dkms's tree has a directory of this build without a module in it: another dkms is at work, or was killed"
        return Cause(Kind.DKMS_TREE, reason, "When no dkms runs: knetstatctl repair", last_lines(output, 4))
    if "Could not locate dkms.conf" in output or "broken" in output:
        reason = "dkms's tree names a source that does not exist"
        return Cause(Kind.DKMS_TREE, reason, "Restore the source in /usr/src, or: knetstatctl repair", last_lines(output, 4))
    return None


_WORDS = re.compile(
    r"error|\*\*\*|not found|no space|no such file|read-only|memory|killed|terminated|exit (?:status|code)|headers|missing"
    r"|entering directory|pahole|btf|ssl|sign-file|failed|libbpf",
    re.IGNORECASE,
)
# A macro's error is reported in the kernel's header; what the module did is in a later line.
_HEADER = re.compile(r"/(?:linux-headers|kernels)[-/]|^\./(?:include|arch)/")


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """The first place where a pattern fits; one in the module's own files before one in the kernel's."""
    first = pattern.search(text)
    if first is not None and first.re.groups and _HEADER.search(first[1] or ""):
        return next((m for m in pattern.finditer(text) if not _HEADER.search(m[1] or "")), first)
    return first


_QUOTED = re.compile(r"\s*\d*\s*\|")  # below an error, gcc shows the line of the source, and what it says is the module's


def _telling(text: str) -> str:
    """The lines that a rule could fit, cut: a log may be megabytes, and one line of it a megabyte."""
    cut = (line[:400] for line in text.splitlines())
    return "\n".join(line for line in cut if _WORDS.search(line) and not _QUOTED.match(line))


# Where dkms compiles; what follows is the path that the module's author knows.
_BUILD = re.compile(r"/\S*/tree/[^/\s]+/[^/\s]+/build/")


def _fill(template: str, groups: list[str]) -> str:
    for number, group in enumerate(groups, 1):
        template = template.replace(f"{{{number}}}", group)
    return re.sub(r"\{\d\}", "", template)


def _evidence(text: str, pattern: re.Pattern[str], begin: int = 0, most: int = 3) -> tuple[str, ...]:
    lines: list[str] = []
    for match in pattern.finditer(text, begin):
        start = text.rfind("\n", 0, match.start()) + 1
        end = text.find("\n", match.end())
        shown = map(names.clean, text[start : end if end >= 0 else len(text)].splitlines())
        lines += [line for line in shown if line not in lines]
        if len(lines) >= most:
            break
    return tuple(lines[:most])


def last_lines(text: str, count: int) -> tuple[str, ...]:
    """The last lines of a log that say anything, fit for a journal entry."""
    return tuple(names.clean(line) for line in text.splitlines() if line.strip())[-count:]
