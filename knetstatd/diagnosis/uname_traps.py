# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules that compile for the kernel that runs, whatever kernel they are asked to be built for; and the cure for good.

Rule 1: a line that asks for the running kernel (`uname -r` and its like in Python, Perl, C, /proc and /lib/modules) is a trap
        only if what it sets is not set by dkms.conf's MAKE and the compile is not started in the kernel's own directory anyway.
Rule 2: the vendor's files are not touched: the cure is an override in /etc/dkms (dkms(8), "DKMS.CONF OVERRIDES"), which an
        update of the package leaves alone.
Rule 3: no override is offered if it is not clear what to override, if nobody has seen a build by plain dkms come out wrong
        without it, or if a build with it does. dkms tells make the kernel (KERNELRELEASE), and most Makefiles listen.
Rule 4: an override is for one version of a package, by its name, and adds to what the package's own dkms.conf says.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from knetstatd.dkms.dkms_conf import Conf


class RunningKernelRead(NamedTuple):
    """A line of a module's build files that asks for the running kernel instead of the target.

    variable: the make variable it sets, "" for none.  passed: whether dkms.conf sets that variable for make.
    """

    file: str
    line: int
    text: str
    variable: str
    passed: bool


class Override(NamedTuple):
    """A file in /etc/dkms that makes dkms build the module for the kernel that it is asked for."""

    path: str
    text: str


_SETS = re.compile(r"^\s*(?:export\s+|override\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*(?:\?|:|::|\+)?=")
_BUILD_FILES = re.compile(r"(?:(?:GNU)?[Mm]akefile|Kbuild|.*\.mk|configure|dkms\.conf|.*\.(?:sh|py|pl))")
_ASKS = re.compile(
    r"\buname\s+(?:-\w*[ra]|--(?:kernel-release|all)\b)"
    r"|\bplatform\.(?:release|uname|platform)\s*\(|\bos\.uname\s*\("
    r"|\bPOSIX::uname\b|\(\s*uname\s*(?:\(\s*\))?\s*\)\s*\["
    r"|/proc/version(?:_signature)?\b|\bkernel[./](?:osrelease|version)\b|\bhostnamectl\b"
    r"|\bls\b[^|;&]{0,200}\s/(?:usr/)?lib/modules/?(?![\w$/.-])|/lib/modules/\*"
)
# A program of the source's own that is compiled and run for it: the kernel's modules have no <sys/utsname.h>.
_PROGRAM, _ASKS_IN_C = "sys/utsname.h", re.compile(r"\buname\s*\(\s*&")
_MOST_PROGRAMS = 500


def reads(source: Path, passed: Collection[str]) -> tuple[RunningKernelRead, ...]:
    """The lines of a module's build files that ask for the running kernel, those that decide first.

    passed: the make variables that dkms.conf sets; a `?=` or `=` of one of those is overruled by it.
    """
    lines = [read for path in _build_files(source) for read in _in_file(source, path, passed, _ASKS)]
    programs = () if lines else itertools.islice(source.rglob("*.c"), _MOST_PROGRAMS)
    for path in programs:
        if _PROGRAM in (files.text(path) or ""):
            lines += _in_file(source, path, passed, _ASKS_IN_C)
    return tuple(sorted(lines, key=lambda r: (r.passed, not r.variable, r.file, r.line)))


def _build_files(source: Path) -> Iterator[Path]:
    count = 0
    for where, dirs, files_here in os.walk(source):
        dirs[:] = sorted(d for d in dirs if d != ".git")
        for name in sorted(files_here):
            path = source.__class__(where) / name
            # An absolute link leads to a file of this machine, whichever system the source is of.
            if (_BUILD_FILES.fullmatch(name) or _is_script(path)) and not (
                path.is_symlink() and os.readlink(path).startswith("/")
            ):
                yield path
                count += 1
        if count > 200:
            return


def _is_script(path: Path) -> bool:
    """Whether a file can be run as a script, whatever its name."""
    try:
        if "." in path.name or not os.lstat(path).st_mode & 0o100:
            return False
        return files.untrusted(path, 1 << 20)[:2] == b"#!"
    except (OSError, KnetstatdError):
        return False


def _in_file(source: Path, path: Path, passed: Collection[str], asks: re.Pattern[str]) -> Iterator[RunningKernelRead]:
    for number, line in enumerate((files.text(path) or "").splitlines(), 1):
        if line.lstrip().startswith("#") or not asks.search(line):
            continue
        sets = _SETS.match(line)
        variable = sets[1] if sets else ""
        yield RunningKernelRead(
            os.path.relpath(path, source), number, names.clean(line.strip(), 200), variable, variable in passed
        )


def cure(reads: Collection[RunningKernelRead]) -> str:
    """What to do about a build that takes the running kernel for its target. reads: the lines that ask, in their order."""
    for first in reads:
        where = f"{first.file} line {first.line} asks for the running kernel"
        if first.variable:
            return f"{where}; set {first.variable} in dkms.conf's MAKE"
        return f"{where}; give make the kernel in dkms.conf's MAKE: -C ${{kernel_source_dir}}"
    return "No line of its build files is known to ask for the running kernel; in dkms.conf's MAKE, use -C ${kernel_source_dir}"


# With the lines that it goes on in.
_EXTRA = re.compile(r"^[^#\n]*?\bEXTRA_CFLAGS\s*[:+?]?=((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)


def flags(source: Path, subject: str) -> str:
    """Where a module's build files give the compiler `subject` by EXTRA_CFLAGS, as "FILE line N"; "" for nowhere.

    subject: an identifier (by -D), or a header that is in the module's source (by -I).
    """
    header = subject.endswith(".h")
    if header and not any(f"{where}/{name}".endswith(f"/{subject}") for where, _, here in os.walk(source) for name in here):
        return ""
    wanted = re.compile(r"-I" if header else rf"-D\s*{re.escape(subject)}\b")
    for path in _build_files(source):
        text = files.text(path) or ""
        for match in _EXTRA.finditer(text):
            if wanted.search(match[1]):
                return f"{names.clean(os.path.relpath(path, source))} line {text.count(chr(10), 0, match.start()) + 1}"
    return ""


_UNAME = re.compile(r"\$\(shell\s+uname\s+-\w*r\w*\s*\)|`\s*uname\s+-\w*r\w*\s*`|\$\(\s*uname\s+-\w*r\w*\s*\)")
# What starts the compile in the kernel's directory: there the module's own `else` branch for hand builds is never read.
_IN_KERNEL = re.compile(
    r"(?:-C|--directory)[ =]*[\"']?(?:\$\{?kernel_source_dir\b|/lib/modules/(?:\$\{?kernelver\b|\d)\S*/build)"
)


def active(conf: Conf, lines: Collection[RunningKernelRead]) -> tuple[RunningKernelRead, ...]:
    """Of a module's lines, those that decide the kernel in a build by dkms. conf: read without a kernel."""
    commands = [make.command for make in conf.make if make.command]
    if not commands or any(_IN_KERNEL.search(command) for command in commands):
        return ()
    return tuple(read for read in lines if not read.passed and read.file != "dkms.conf")


HEAD = "# Written by knetstatctl repair; delete it when the module's own files are corrected."


def ours(root: Path, package: str, version: str = "") -> tuple[str, ...]:
    """The overrides of ours that dkms reads for a package. version: "" for those for any version of it."""
    wanted = [f"/etc/dkms/{package}.conf", *([f"/etc/dkms/{package}-{version}.conf"] if version else [])]
    return tuple(path for path in wanted if is_ours(root, path))


def is_ours(root: Path, path: str) -> bool:
    """Whether `repair` wrote a file of /etc/dkms."""
    return (files.text(files.inside(root, path), 1 << 16) or "").startswith(HEAD)


def override(module: str, version: str, conf: Conf, at_fault: Collection[RunningKernelRead], source: Path) -> Override | None:
    """The override that cures `active` lines, None if none can be given. conf: read without a kernel.

    It passes the variables at fault; if there are none, it starts the compile in the kernel's directory, if the module has
    what is read there (obj-m). `repair` proves either by a build before it stays.
    """
    if len(conf.make) != 1:
        return None  # which of them is meant, only MAKE_MATCH knows
    command, sets = conf.make[0].command, dict(_assignments(at_fault))
    if sets and len(sets) == len({read.variable for read in at_fault}) and not re.search(r"[\"`\\]", command):
        make = f'+=" {" ".join(f"{name}={value}" for name, value in sorted(sets.items()))}"'
    elif any(re.search(r"^[ \t]*obj-m\b", files.text(source / name) or "", re.MULTILINE) for name in ("Kbuild", "Makefile")):
        # In single quotes: dkms expands it a second time, when it knows these names (dkmsconf, Rule 3).
        make = "='make -C ${kernel_source_dir} M=${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build modules'"
    else:
        return None
    lines = [f"# {read.file} line {read.line} reads the running kernel: {read.text}" for read in at_fault]
    text = "\n".join([HEAD, *lines, f"MAKE[0]{make}"])
    return Override(f"/etc/dkms/{names.package(module)}-{names.package(version)}.conf", f"{text}\n")


def _assignments(at_fault: Collection[RunningKernelRead]) -> Iterator[tuple[str, str]]:
    """For each variable, the value that names the kernel that dkms builds for."""
    for read in at_fault:
        _, _, value = read.text.partition("=")
        value = _UNAME.sub("${kernelver}", value.strip())
        if read.variable and re.fullmatch(r"(?:[A-Za-z0-9._/+-]|\$\{kernelver\})+", value):
            yield read.variable, value
