# SPDX-License-Identifier: GPL-2.0-or-later
"""What dpkg says: kernel packages that were left half-way, and to which package a file belongs. Read from its files.

Rule 1: dpkg is not run, and its locks are not taken: /var/lib/dpkg/status and the journal in updates/ say which state a package
        is in, info/*.list what it brought.
Rule 2: a list that cannot be read makes the answer unknown, never "no package": `owned` raises.

Sources: dpkg(1), "Package states"; deb-version(7); dpkg's lib/dpkg/database format, as dpkg-query(1) prints it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_DPKG = "var/lib/dpkg"
_LIMIT = 128 << 20  # bytes; the status of 10,000 packages has 15 MB
_STATUS = re.compile(r"^Status: \S+ (\S+) (\S+)$", re.MULTILINE)
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
_KERNEL_PACKAGE = re.compile(r"(?:linux-(?:image|binary|headers|modules|base)(?:-unsigned|-extra)?|linux-kbuild)-(\d\S*)")
# The states that `dpkg --configure` takes to their end; "half-installed" needs the package itself again.
CONFIGURABLE = ("unpacked", "half-configured")
_UNFINISHED = (*CONFIGURABLE, "half-installed")


class Unfinished(NamedTuple):
    """A package that is neither installed nor not. kernel: the release in its name, "" for none."""

    name: str
    state: str
    kernel: str
    depends: frozenset[str]

    @property
    def boots(self) -> bool:
        """Whether the kernel itself is in it: then its initrd and its boot entry may be missing."""
        return not self.name.startswith(("linux-headers-", "linux-kbuild-"))


def unfinished(root: Path) -> tuple[Unfinished, ...]:
    """All packages that a failed or interrupted transaction left half-way, by name. Raises nothing: no dpkg, no packages."""
    found: dict[str, Unfinished] = {}
    updates = (name for name in files.names(files.inside(root, f"/{_DPKG}/updates")) if name[0].isdigit())
    for name in ("status", *(f"updates/{update}" for update in updates)):
        text = files.text(files.inside(root, f"/{_DPKG}/{name}"), _LIMIT) or ""
        if name == "status" and not any(f" {state}\n" in text for state in _UNFINISHED):
            continue  # as nearly always
        if name != "status":
            for stanza in text.split("\n\n"):
                found.pop(_field(stanza, "Package"), None)
        for match in _STATUS.finditer(text):
            if match[2] in _UNFINISHED:
                begin, end = text.rfind("\n\n", 0, match.start()) + 1, text.find("\n\n", match.end())
                package = _package(text[begin : end if end >= 0 else len(text)], match[2])
                if package is not None:
                    found[package.name] = package
    return tuple(found[name] for name in sorted(found))


def _field(stanza: str, name: str) -> str:
    match = re.search(rf"^{name}:[ \t]*(.*)$", stanza, re.MULTILINE)
    return match[1].strip() if match else ""


def _package(stanza: str, state: str) -> Unfinished | None:
    name = _field(stanza, "Package")
    if not _NAME.fullmatch(name):
        return None
    kernel = _KERNEL_PACKAGE.fullmatch(name)
    release = kernel[1] if kernel and names.is_kernel(kernel[1]) else ""
    needs = f"{_field(stanza, 'Pre-Depends')}, {_field(stanza, 'Depends')}"
    depends = re.findall(r"[a-z0-9][a-z0-9+.-]+(?=[\s(:,|]|$)", needs)
    return Unfinished(name, state, release, frozenset(depends))


def of_kernel(found: Collection[Unfinished], kernel: str) -> tuple[Unfinished, ...]:
    """The unfinished packages of a kernel, and those that wait for them (its meta packages)."""
    mine = {p.name for p in found if p.kernel == kernel}
    while more := {p.name for p in found if p.name not in mine and not p.kernel and p.depends & mine}:
        mine |= more
    return tuple(p for p in found if p.name in mine)


def has_dpkg(root: Path) -> bool:
    """Whether dpkg knows about this machine's files."""
    there = os.path.isfile(files.inside(root, f"/{_DPKG}/status"))
    return there and bool(files.names(files.inside(root, f"/{_DPKG}/info")))


def owners(root: Path, paths: Collection[str]) -> dict[str, str]:
    """For each path that a package brought, one such package. The paths may be spelt with /lib or /usr/lib.

    Raises KnetstatdError where dpkg's lists cannot be read: then nothing may be taken for nobody's.
    """
    wanted = {spelling: path for path in paths for spelling in _spellings(path)}
    found: dict[str, str] = {}
    info = files.inside(root, f"/{_DPKG}/info")
    for name in files.names(info):
        if name.endswith(".list"):
            try:
                text = files.read(info / name, _LIMIT).decode("utf-8", "surrogateescape")
            except OSError as e:
                raise KnetstatdError(f"cannot be read: {e.strerror}", os.fspath(info / name)) from e
            if any(spelling in text for spelling in _prefixes(wanted)):
                for line in text.split("\n"):
                    if line in wanted:
                        found.setdefault(wanted[line], name.removesuffix(".list").partition(":")[0])
    return found


def _spellings(path: str) -> tuple[str, ...]:
    """/lib is a link to /usr/lib; packages ship one spelling or the other."""
    if path.startswith("/lib/"):
        return (path, f"/usr{path}")
    return (path, path.removeprefix("/usr")) if path.startswith("/usr/lib/") else (path,)


def _prefixes(paths: Collection[str]) -> set[str]:
    """A few strings of which a list that names one of the paths has one: most lists are done after one search."""
    return {"/".join(path.split("/")[:5]) for path in paths}
