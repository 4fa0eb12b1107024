# SPDX-License-Identifier: GPL-2.0-or-later
"""The words by which a build's log shows its cause, as a table: patterns, from the most specific cause to the most general.

Rule: what a Makefile asks by the way may fail and do no harm. If a compiler has an error to report, that is the cause.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

from knetstatd.core.model import Kind


class Cure(enum.Enum):
    """A cure that somebody who knows the machine can say better (see compare_kernels)."""

    AS_SAID = enum.auto()
    INSTALL_HEADERS = enum.auto()
    REINSTALL_HEADERS = enum.auto()


class Rule(NamedTuple):
    """A cause and the pattern that shows it. reason, fix and subject may use {1}, {2}: the pattern's groups.

    despite: what shows that this is the cause although the compiler or modpost reports an error; None: it always is.
    first: it is the cause only if no other error comes before it.
    """

    pattern: re.Pattern[str]
    kind: Kind
    reason: str
    fix: str
    subject: str
    despite: re.Pattern[str] | None
    cure: Cure
    first: bool = False

    def counts(self, text: str, at: int) -> bool:
        """Whether what fits, at this place of a log, may be the cause."""
        if self.first and _ERROR.search(text, 0, at):
            return False
        return self.despite is None or _ERROR.search(text) is None or self.despite.search(text) is not None


def _rule(
    pattern: str, kind: Kind, reason: str, fix: str, subject: str = "", despite: str = "", cure: Cure = Cure.AS_SAID
) -> Rule:
    unless = re.compile(despite, re.MULTILINE) if despite else None
    return Rule(re.compile(pattern, re.MULTILINE), kind, reason, fix, subject, unless, cure)


_ERROR = re.compile(r"^\S+?:\d+:(?:\d+:)? (?:fatal )?error: (?!.*Read-only file system)|^ERROR: modpost: ", re.MULTILINE)
_NOT_RUN = r"Error 127$|No rule to make target"  # the shell's and make's status if there is no such program

_PORT = "The module's source does not fit this kernel: get a newer version of it (its distributor or author), then dkms add it"

RULES = (
    _rule(
        r"No space left on device",
        Kind.DISK,
        "the disk is full",
        "Free space; `df -h /var /tmp /boot /lib/modules` shows where",
    ),
    _rule(
        r"Read-only file system",
        Kind.READ_ONLY,
        "a file system is read-only",
        "Remount it writable, or look at dmesg for why",
        despite=r"Read-only file system.*(?:\n(?:make|#).*)*\Z",
    ),
    _rule(
        r"^# exit code: [1-9](?:.*\n)+?# exit code: [1-9]|cannot find \S+/build/\S+\.mod\.o: No such file"
        r"|/build/make\.log: No such file",
        Kind.FOREIGN_DKMS,
        "another dkms built the same module at the same time, in the same directory",
        "When no other dkms runs, build again",
    ),
    _rule(
        r"(?:virtual memory exhausted|Cannot allocate memory|out of memory|internal compiler error: Killed|\(program cc1\)"
        r"|fatal error: Killed signal terminated)",
        Kind.MEMORY,
        "the build ran out of memory",
        "Give the build more memory; `journalctl -k` shows what was killed",
    ),
    _rule(
        r"error: cannot load plugin (\S+?):|error: (?:fail|failed) to initialize plugin (\S+)"
        r"|error: plugin (\S+) is not licensed under",
        Kind.TOOLS,
        "the compiler cannot use the plugin {1}",
        "A plugin must be made for this very compiler: build it again, or take -fplugin out of the module's Makefile",
        "{1}",
    ),
    _rule(
        r"(?:^|[\s\"'])(\S*(?:scripts|tools)/\S*?)(?: |: |['\"]: )(?:command )?(?:not found|No such file or directory)"
        r"|No rule to make target [`'](\S*(?:scripts|tools)/[^\s']*)'",
        Kind.TOOLS,
        "the headers' own build tool {1} is missing",
        "Reinstall the headers of this kernel and what they depend on (Debian: linux-kbuild)",
        "{1}",
        _NOT_RUN,
        Cure.REINSTALL_HEADERS,
    ),
    _rule(
        r"pahole: (?:not found|command not found|No such file)|^(?:pahole|btf_encoder\S*): .*|FAILED: load BTF from \S+: .*"
        r"|libbpf: .*|^FAILED.* BTF.*|\.BTF\S*.* not found",
        Kind.TOOLS,
        "the module's type information (BTF) cannot be made from the kernel's vmlinux",
        "Install the pahole that the kernel's headers depend on, or move the vmlinux beside the headers away: without it, "
        "BTF is left out",
    ),
    _rule(
        r": line \d+: +\d+ (?:Killed|Terminated)\b|\*\*\* \[.*\] (?:Killed|Terminated)\b|exit (?:status|code): 1(?:37|43)\b",
        Kind.INTERRUPTED,
        "a program of the build was killed",
        "`journalctl -k` shows whether memory ran out",
    ),
    _rule(
        r"unrecognized command[- ]line option \W*(-[^\s'\u2018\u2019\"]+)|unknown argument: '(-[^']+)'",
        Kind.COMPILER,
        "the compiler does not know the option {1}",
        "Compile with the compiler that the kernel was compiled with, or take the option out of the module's Makefile",
        "{1}",
    ),
    _rule(
        r"fatal error: cannot execute [\W]*([\w.+-]+)",
        Kind.COMPILER,
        "a program of the compiler is missing: {1}",
        "Reinstall the compiler (cc1), or binutils (as, ld)",
        "{1}",
    ),
    _rule(
        r"(?:^|[\s/])([^\s/:]+): (?:command )?not found$|^make.*: ([A-Za-z]\S*): No such file or directory$",
        Kind.COMPILER,
        "a program that the build needs is missing: {1}",
        "Install it: apt install {1}",
        "{1}",
        _NOT_RUN,
    ),
    _rule(
        r"ERROR: modpost: (?:\S+: symbol )?['\"](\S+?)['\"] (?:\[\S+\] )?undefined!",
        Kind.SYMBOL,
        "the kernel does not export the symbol {1}",
        _PORT,
        "{1}",
    ),
    _rule(
        r"ERROR: modpost: (?:\S+: )?GPL-incompatible module (?:\S+ )?uses GPL-only symbol ['\"](\S+?)['\"]",
        Kind.SYMBOL,
        "the module's licence does not allow the GPL-only symbol {1}",
        _PORT,
        "{1}",
    ),
    _rule(
        r"ERROR: modpost: (?:\S+: )?module (?:\S+ )?uses symbol '?([^\s']+)'? from namespace '?([^\s',]+)'?, but does not",
        Kind.SYMBOL,
        "symbol {1} is in namespace {2}, which the module does not import",
        'Add MODULE_IMPORT_NS("{2}") to the module (before 6.13 without the quotes), or get a newer version of it',
        "{1}",
    ),
    _rule(
        r"ERROR: modpost: missing MODULE_LICENSE\(\) in (\S+)",
        Kind.COMPILE,
        "{1} has no MODULE_LICENSE",
        "Add MODULE_LICENSE to the module's source",
    ),
    _rule(
        r"(include/generated/autoconf\.h or include/config/auto\.conf are missing)"
        r"|^\S*/(?:linux-headers|kernels)[-/]\S+?:\d+:(?:\d+:)? fatal error: (generated/\S+): No such file"
        r"|^(?:\S*/)?(?:linux-headers|kernels)\S*/Makefile:\d+: (\S+): No such file or directory"
        r"|^\S*Makefile:\d+: (/usr/src/(?:linux-headers|kernels)\S+): No such file or directory",
        Kind.HEADERS,
        "the kernel's headers are incomplete: {1}",
        "Reinstall the headers of this kernel",
        cure=Cure.REINSTALL_HEADERS,
    ),
    _rule(
        r"^(\S+?):(\d+):(?:\d+:)? (?:fatal )?error: (\S+\.h): No such file or directory",
        Kind.API,
        "{1} line {2} includes {3}, which this kernel does not have",
        _PORT,
        "{3}",
    ),
    # What follows a missing bracket may be called undeclared, and is not.
    _rule(
        r"^(?!\S*/(?:linux-headers|kernels)[-/])(\S+?):(\d+):(?:\d+:)? error: (expected \W[;:)}\]]\W before .*"
        r"|expected \W,\W or \W;\W before (?:\W\W+ token|\W(?:return|if|else|for|while|do|switch|case|goto|static|int)\W).*"
        r"|expected .* at end of input.*|stray .* in program|unterminated .*|missing terminating .*)",
        Kind.COMPILE,
        "{1} line {2}: a syntax error of the module's own: {3}",
        "Correct the source, or get a newer version",
    )._replace(first=True),
    _rule(
        r"^(\S+?):(\d+):(?:\d+:)? error: ((?:implicit declaration of function|unknown type name) \W(\w+)\W.*"
        r"|\W(\w+)\W undeclared.*|.* has no member named .*|.*too (?:few|many) arguments.*|passing argument .*"
        r"|macro .* (?:requires|passed) .*|incompatible type.*|initialization of .*|conflicting types.*|assignment (?:to|of) .*"
        r"|static declaration of .* follows .*|redefinition of .*|invalid use of undefined type.*|storage size of .*"
        r"|returning .* from a function with .*|#error .*)",
        Kind.API,
        "{1} line {2}: {3}",
        _PORT,
        "{4}",
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
        cure=Cure.INSTALL_HEADERS,
    ),
    _rule(
        r"^make.*\*\*\* (M=\S*|/\S+): (?:No such file or directory|Not a directory)\.  Stop"
        r"|Entering directory '([^']*)'\n(?:.*\n){0,3}?make.*No rule to make target 'modules'"
        r"|^\S*[Mm]akefile:\d+: (/\S+): No such file or directory",
        Kind.KERNEL_DIR,
        "the module's Makefile takes {1} for the kernel's directory",
        "Let the Makefile use the directory that dkms gives: make -C ${kernel_source_dir} in dkms.conf's MAKE",
    ),
    _rule(
        r"configure: error: (.*)",
        Kind.COMPILE,
        "the module's configure script stopped: {1}",
        "Install what it asks for; if that is something of the kernel's, get a newer version of the module",
    ),
    _rule(
        r"No rule to make target [`'](\S+)'",
        Kind.COMPILE,
        "make does not know how to make {1}",
        "Correct the module's Makefile",
    ),
    _rule(
        r"[Mm]akefile:(\d+): \*\*\* (.*)\.  Stop",
        Kind.COMPILE,
        "make stopped in line {1}: {2}",
        "Correct the module's Makefile",
    ),
    _rule(
        r"SSL error:.*|sign-file: .*|(?:Failed to sign|Sign(?:ing)? .*failed).*",
        Kind.SIGNING,
        "the module cannot be signed",
        "Look at the key that mok_signing_key and mok_certificate in /etc/dkms/framework.conf name "
        "(by default /var/lib/dkms/mok.key, mok.pub)",
    ),
    _rule(
        r"Application of patch (\S+) failed",
        Kind.CONF,
        "the patch {1} that dkms.conf names does not fit the source",
        "Correct PATCH in dkms.conf, or get a version of the module for this kernel",
    ),
    _rule(r"^make.*\*\*\* (.*)$", Kind.COMPILE, "make failed: {1}", "The log has all of it"),
)
