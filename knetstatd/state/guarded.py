# SPDX-License-Identifier: GPL-2.0-or-later
"""Which packages were guarded a moment ago: one that leaves dkms's tree must not leave the verdicts with it.

Rule 1: a package is remembered while it is guarded, over restarts too. It is forgotten if the configuration guards it no more;
        or if neither dkms nor /usr/src has it, and dpkg says that the package that brought it is removed.
Rule 2: a kernel that had a package's modules is owed them when the package is registered anew, as in an upgrade: -dkms packages
        take them off every kernel before. It is owed them until it has the new version, or is gone itself. What somebody
        takes off one kernel is not brought back.
Rule 3: losing the file costs this: a package of which nothing but its Debian package is left is not red any more, and a
        kernel that is not guarded is not given what an upgrade took.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import KnetstatdError
from knetstatd.dkms import dkms_tree
from knetstatd.machine import dpkg_status
from knetstatd.system import documents, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from knetstatd.dkms.dkms_tree import Package
    from knetstatd.state.paths import Places

SCHEMA = 2


class Guarded(NamedTuple):
    """A package as it was at the last look. registered: dkms knew it.  owner: the Debian package of its source, "" for none.

    mark: another one for each registration with dkms.  kernels: those that had its modules.  owed: those that are to have them
    again.
    """

    version: str
    registered: bool
    owner: str = ""
    mark: str = ""
    kernels: tuple[str, ...] = ()
    owed: tuple[str, ...] = ()


def _owner(root: Path, package: Package) -> str:
    """The Debian package that brought a source, "" for none or if dpkg's lists cannot be read."""
    path = f"{files.below(root, package.highest.source)}/dkms.conf"
    try:
        return dpkg_status.owners(root, [path]).get(path, "")
    except KnetstatdError:
        return ""


class Missing(NamedTuple):
    """The packages that dkms does not know and should. sources: those whose source is in /usr/src.

    orphans: those that are remembered, and of which only the Debian package is left.
    switch: the administrator's file that keeps -dkms packages from registering what they bring, "" if there is none.
    """

    sources: Mapping[str, Package]
    orphans: Mapping[str, Guarded]
    switch: str = ""

    @property
    def names(self) -> set[str]:
        """All of them."""
        return {*self.sources, *self.orphans}

    def explain(self, package: str) -> tuple[str, str, str]:
        """Of a package that dkms does not know: its version, why that is so, and the cure."""
        reason = f"{package} is not registered with DKMS"
        if (left := self.sources.get(package)) is not None:
            version = left.highest.version
            reason += f", and its source is in {left.highest.source}"
            reason += f"; while {self.switch} is there, no -dkms package registers its own" if self.switch else ""
            return version, reason, f"dkms add {package}/{version}"
        if (orphan := self.orphans.get(package)) is not None:
            reason += f", and its source is gone; the package {orphan.owner} is installed"
            return orphan.version, reason, f"apt-get install --reinstall {orphan.owner}"
        return "", reason, f"Install its -dkms package, or put its source in /usr/src and run: dkms add {package}/VERSION"


def missing(root: Path, places: Places, registered: Mapping[str, Package]) -> Missing:
    """What dkms does not know and should."""
    sources = dkms_tree.unregistered(root, registered)
    left = {name: one for name, one in load(places).items() if name not in registered and name not in sources and one.owner}
    orphans = {name: one for name, one in left.items() if not dpkg_status.is_removed(root, one.owner)}
    return Missing(sources, orphans, dkms_tree.NO_AUTOINSTALL if dkms_tree.is_switched_off(root) else "")


def now(
    root: Path,
    places: Places,
    packages: Iterable[str],
    registered: Mapping[str, Package],
    missing: Missing,
    kernels: Iterable[str],
) -> dict[str, Guarded]:
    """What to remember of the guarded packages, as the machine is now. kernels: those that it has."""
    there = set(kernels)
    before, kept = load(places), {}
    for name in packages:
        if (package := registered.get(name) or missing.sources.get(name)) is not None:
            version, known = package.highest.version, before.get(name)
            # dpkg's lists are read once for each package and version.
            owner = known.owner if known is not None and known.version == version else _owner(root, package)
            one = Guarded(version, name in registered, owner, *(known[3:] if known is not None else ()))
            kept[name] = _on_kernels(root, package, one, there) if one.registered else one
        elif name in missing.orphans:
            kept[name] = missing.orphans[name]._replace(registered=False)
    return kept


def _on_kernels(root: Path, package: Package, before: Guarded, there: set[str]) -> Guarded:
    """Adds which kernels have a registered package's modules, and which should."""
    have = {build.kernel: version for version in package.versions for build in version.builds if build.installed}
    try:
        seen = os.lstat(dkms_tree.tree(root) / package.name / package.highest.version / "source")
        mark = f"{package.highest.version} {seen.st_ino} {seen.st_ctime_ns}"
    except OSError:
        mark = ""
    owed = set(before.owed) | (set(before.kernels) if mark != before.mark else set())
    owed = {kernel for kernel in owed & there if have.get(kernel) != package.wanted(kernel)}
    return before._replace(mark=mark, kernels=tuple(sorted(have.keys() & there)), owed=tuple(sorted(owed)))


def owed(places: Places) -> dict[str, list[str]]:
    """The packages that kernels are owed, by kernel."""
    packages: dict[str, list[str]] = {}
    for name, one in load(places).items():
        for kernel in one.owed:
            packages.setdefault(kernel, []).append(name)
    return packages


def load(places: Places) -> dict[str, Guarded]:
    """The remembered packages by name; none if the file is missing or damaged."""
    if (document := documents.read(places.guarded)) is None:
        return {}
    try:
        if document.integer("schema") != SCHEMA:
            return {}
        return {names.package(one.text("name")): _one(one) for one in document.items("packages")}
    except KnetstatdError:
        return {}


def _one(node: documents.Node) -> Guarded:
    on = (tuple(map(names.kernel, node.texts(key))) for key in ("kernels", "owed"))
    return Guarded(names.package(node.text("version")), node.flag("registered"), node.text("owner"), node.text("mark"), *on)


def save(places: Places, packages: Mapping[str, Guarded]) -> None:
    """Keeps them. Raises OSError."""
    places.guarded.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"name": name, **one._asdict()} for name, one in packages.items()]
    files.write_json(places.guarded, {"schema": SCHEMA, "packages": rows})
