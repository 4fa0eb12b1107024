# SPDX-License-Identifier: GPL-2.0-or-later
"""What changed between two kernels, if that explains a failure: the headers of the other installed ones are the witnesses.

Rule 1: only what files say is said. Nothing is known of a kernel whose headers are not installed.
Rule 2: it is asked only after a failure, so it may read megabytes; it reads no more than the bounds below.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names, roots
from knetstatd.core.errors import KernelFileError
from knetstatd.core.model import Headers, Kind
from knetstatd.diagnosis import uname_traps
from knetstatd.diagnosis.build_rules import Cure
from knetstatd.formats import symvers
from knetstatd.machine import kernels
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.diagnosis.build_log import Cause

_FILES, _BYTES = 20000, 256 << 10  # headers read in a search, and of each at most so much; a kernel has 6,000 of up to 200 KB
_COMMON = re.compile(r"^include\s+(/\S+)/Makefile\s*$", re.MULTILINE)
# Programs whose package has another name.
_PACKAGES = {"ld": "binutils", "objcopy": "binutils", "objdump": "binutils", "readelf": "binutils", "cc": "gcc"}


class _Kernel(NamedTuple):
    """A kernel with complete headers. places: their include directories."""

    release: str
    headers: Path
    places: tuple[Path, ...]


def refine(cause: Cause, root: Path, kernel: str, source: Path) -> Cause:
    """The cause with what the machine's kernels and their headers, and the module's source, add to it. Raises nothing."""
    by_release = {k.release: k for k in _kernels(root)}
    target = by_release.get(kernel)
    if cause.cure is Cure.REINSTALL_HEADERS:
        return cause._replace(fix=kernels.headers_reinstall(root, kernel, cause.subject))
    if cause.cure is Cure.INSTALL_HEADERS:
        return cause._replace(fix=kernels.headers_fix(root, kernel))
    if target is None or not cause.subject:
        return cause
    # The nearest first: what changed since the kernel before says more than what changed in ten years.
    order = sorted(by_release.values(), key=lambda k: names.version_key(k.release))
    here = order.index(target)
    others = order[:here][::-1] + order[here + 1 :]
    match cause.kind:
        case Kind.SYMBOL:
            return _symbol(cause, target, others)
        case Kind.API if place := _unread_flags(target, source, cause.subject):
            text = f"; {place} gives it by EXTRA_CFLAGS, which this kernel's build system does not read"
            return cause._replace(reason=cause.reason + text, fix=f"Write ccflags-y in its place; or: {cause.fix}")
        case Kind.API if cause.subject.endswith(".h"):
            return _header(cause, target, others)
        case Kind.API:
            return _identifier(cause, target, others)
        case Kind.COMPILER:
            return _compiler(cause, root, target)
    return cause


def _kernels(root: Path) -> Iterator[_Kernel]:
    for release in kernels.directories(root).kernels:
        headers = kernels.headers(root, release)
        if headers.state is Headers.COMPLETE and headers.path is not None:
            common = _COMMON.search(files.text(headers.path / "Makefile", 65536) or "")
            both = [headers.path, *([files.inside(root, common[1])] if common else [])]
            places = [where / part for where in both for part in ("include", "arch/x86/include", "arch/arm64/include")]
            yield _Kernel(release, headers.path, tuple(filter(os.path.isdir, places)))


def _exports(kernel: _Kernel, symbol: str) -> symvers.Export | None:
    try:
        return symvers.find(kernel.headers / "Module.symvers", {symbol}).get(symbol)
    except KernelFileError:
        return None


def _symbol(cause: Cause, target: _Kernel, others: list[_Kernel]) -> Cause:
    symbol = cause.subject
    mine = _exports(target, symbol)
    theirs = [(k.release, export) for k in others if (export := _exports(k, symbol)) is not None]
    if mine is not None and mine.gpl_only and (was := next((r for r, e in theirs if not e.gpl_only), "")):
        return cause._replace(reason=f"{cause.reason}; in {was} it is open to every licence")
    if mine is not None and mine.namespace and (was := next((r for r, e in theirs if not e.namespace), "")):
        return cause._replace(reason=f"{cause.reason}; in {was} it is in no namespace")
    if mine is not None:
        return cause
    like = _related(target, symbol)
    if theirs:
        release, export = theirs[0]
        owner = f" (module {export.module})" if export.module else ""
        reason = f"the kernel no longer exports the symbol {symbol}, which {release} exports{owner}"
    elif place := _declared(target, symbol):
        reason = f"{cause.reason}: {place} declares it, for the kernel's own use"
    else:
        reason = f"{cause.reason}, and no header of it knows it"
        if not like:
            fix = f"If {symbol} is another module's, name that in dkms.conf's BUILD_DEPENDS and KBUILD_EXTRA_SYMBOLS"
            return cause._replace(reason=reason, fix=f"{fix}; else get a newer version of this one")
    return cause._replace(reason=f"{reason}; it exports {like}" if like else reason)


def _related(target: _Kernel, symbol: str) -> str:
    """Exports that a renamed symbol has become: underscores in front, a word behind."""
    core = re.escape(symbol.strip("_"))
    table = files.text(target.headers / "Module.symvers", symvers.LIMIT) or ""
    return ", ".join(sorted(re.findall(rf"\t(_*{core}(?:_noprof|_key|_ns|_nested|_full)?)\t", table))[:3])


def _header(cause: Cause, target: _Kernel, others: list[_Kernel]) -> Cause:
    name = cause.subject
    was = next((k.release for k in others if any((place / part / name).is_file() for place in k.places for part in _PARTS)), "")
    if not was:
        return cause._replace(
            reason=f"{cause.reason}; no installed kernel has it",
            fix="Add the file to the module's source, or install the development package that brings it",
        )
    base = name.rpartition("/")[2]
    now = next((f"{d}/{base}" for d in ("linux", "asm-generic", "net", "crypto") if any((p / d / base).is_file()
               for p in target.places) and f"{d}/{base}" != name), "")  # fmt: skip
    return cause._replace(reason=f"{cause.reason}; {was} has it" + (f", and here it is {now}" if now else ""))


def _unread_flags(target: _Kernel, source: Path, subject: str) -> str:
    """Where the module gives the compiler what is missing in a way that the target's build system (from 6.15 on) ignores."""
    rules = files.text(target.headers / "scripts/Makefile.lib")
    return uname_traps.flags(source, subject) if rules and "EXTRA_CFLAGS" not in rules else ""


_PARTS = ("", "uapi", "generated", "generated/uapi")


def _identifier(cause: Cause, target: _Kernel, others: list[_Kernel]) -> Cause:
    if _declared(target, cause.subject):
        return cause
    for other in others[:2]:
        if place := _declared(other, cause.subject):
            return cause._replace(reason=f"{cause.reason}; {other.release} declares it in {place}, this kernel does not")
    return cause


def _declared(kernel: _Kernel, identifier: str) -> str:
    """The header of a kernel that declares an identifier, "" for none; if it begins a line, it is not only used."""
    word = re.escape(identifier.encode())
    # Not in a comment; followed by what follows a declared name, or #defined.
    pattern = re.compile(
        rb"^(#)\s*define\s+" + word + rb"\b|^(?!\s*(?:\*|//|/\*))(\w)?.*\b" + word + rb"\b\s*(?:\(|;|,|=|$|\[)", re.MULTILINE
    )
    indented = ""
    for path, place in itertools.islice(_headers(kernel), _FILES):
        try:
            with roots.regular(path) as f:
                data = f.read(_BYTES)
        except OSError:
            continue
        for match in pattern.finditer(data) if identifier.encode() in data else ():
            if match[1] or match[2]:
                return os.path.relpath(path, place.parent)
            indented = indented or os.path.relpath(path, place.parent)
    return indented


def _headers(kernel: _Kernel) -> Iterator[tuple[str, Path]]:
    for place in kernel.places:
        for where, dirs, files_here in os.walk(place):
            dirs[:] = sorted((d for d in dirs if d not in ("config", "dt-bindings")), key=lambda d: (d != "linux", d))
            yield from ((os.path.join(where, name), place) for name in sorted(files_here))


def _compiler(cause: Cause, root: Path, target: _Kernel) -> Cause:
    by = names.clean(kernels.cc_version(kernels.configuration(target.headers / ".config")), 100)
    wanted, there = kernels.compiler(root, target.headers)
    tool = "apt" if files.inside(root, "/etc/debian_version").exists() else "dnf"
    package = re.sub(r"^\w+-linux-gnu-", "", wanted)
    if cause.subject.startswith("-"):
        used = re.search(r"\S*(?:gcc|clang|cc1)\S*(?=: )", " ".join(cause.evidence))
        text = f"; the kernel was compiled by {by}" if by else ""
        run = re.sub(r"^.*?(?:\w+-linux-gnu-)", "", used[0]) if used else ""
        if package != wanted.split("-")[0] and run.startswith(("gcc-", "clang-")) and run != package:
            reason = f"{cause.reason}{text}, and this compile ran {run}"
            return cause._replace(reason=reason, fix=f"Run: {tool} install {package}")
        return cause._replace(reason=cause.reason + text)
    program = re.sub(r"^\w+-linux-gnu-", "", cause.subject)
    if program == package or (program in ("gcc", "cc") and there is None):
        text = f"; the kernel was compiled by {by}" if by else ""
        return cause._replace(reason=cause.reason + text, fix=f"Run: {tool} install {package}")
    return cause._replace(fix=f"Run: {tool} install {_PACKAGES.get(program, program)}")
