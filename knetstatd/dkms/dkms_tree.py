# SPDX-License-Identifier: GPL-2.0-or-later
"""What DKMS has registered, built and installed, read from its files.

Rule 1: dkms is not run: `dkms status` takes long, executes every dkms.conf as a shell script, and calls "installed"
        what has no file. A test holds these answers against it.
Rule 2: a fact here says what the tree says. Whether a file is any good is `verify`'s question.
Rule 3: names from the tree are checked (see names); what fails is reported in `refused` and otherwise left alone.
Rule 4: nothing raises: what vanishes while it is read is not there.

The tree: <module>/<version>/source, a link to the source; <module>/<version>/<kernel>/<arch>/module/*.ko*, what was
built; <module>/kernel-<kernel>-<arch>, a link to the build that is installed. Source: dkms(8) and DKMS 3.0.10 to 3.4.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.dkms import dkms_conf, dkms_framework
from knetstatd.system import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

# With it dkms's hooks build nothing, and Debian's -dkms packages do not even register what they bring (common.postinst).
NO_AUTOINSTALL = "/etc/dkms/no-autoinstall"
# Where kernel packages run hooks: Debian's (its packages from 2025 on have the second), and kernel-install's.
_DEBIAN_HOOKS = ("etc/kernel/postinst.d/dkms", "usr/share/kernel/postinst.d/dkms")
_INSTALL_HOOKS = tuple(f"{d}/kernel/install.d/40-dkms.install" for d in ("etc", "run", "usr/local/lib", "usr/lib"))


class Build(NamedTuple):
    """What a version has for one kernel.

    files: the names in its module directory, sorted.  installed: DKMS's mark for it is set; the file need not exist.
    stuck: there is no module directory, and every later `dkms build` fails until `directory` is removed.
    since: when DKMS made its mark, in nanoseconds since the epoch; 0 if it is not set.
    """

    kernel: str
    arch: str
    directory: Path
    files: tuple[str, ...]
    installed: bool
    stuck: bool
    since: int = 0


class Version(NamedTuple):
    """A registered version. source: where its source is, also if `broken` says why it cannot be used.

    leftovers: temporary directories of builds that were killed.  since: when it was registered, in nanoseconds since the epoch.
    """

    version: str
    source: Path
    broken: str
    builds: tuple[Build, ...]
    leftovers: tuple[Path, ...]
    since: int = 0

    def build(self, kernel: str) -> Build | None:
        """What there is for a kernel: what is installed, else what is built, else what is stuck."""
        mine = [build for build in self.builds if build.kernel == kernel]
        return min(mine, key=lambda build: (not build.installed, build.stuck), default=None)


class Package(NamedTuple):
    """A registered package (DKMS's "module"); its versions from the lowest to the highest."""

    name: str
    versions: tuple[Version, ...]

    @property
    def highest(self) -> Version:
        """The version that a kernel is to have, unless somebody has chosen another one for it."""
        return self.versions[-1]

    def wanted(self, kernel: str) -> Version:
        """The version that this kernel is to have: the highest, or a lower one that was installed after that was registered.

        No program does that: `dkms autoinstall` takes the highest, and so do we. Somebody has done it by hand.
        """
        known = self.installed(kernel)
        return known[0] if known is not None and known[1].since > self.highest.since else self.highest

    def installed(self, kernel: str) -> tuple[Version, Build] | None:
        """The version that DKMS has marked as installed for a kernel, whatever its number."""
        for version in reversed(self.versions):
            for build in version.builds:
                if build.kernel == kernel and build.installed:
                    return version, build
        return None


class Registered(NamedTuple):
    """All packages, by name, and the paths (fit for a log) whose names must not be used."""

    packages: dict[str, Package]
    refused: tuple[str, ...]


def tree(root: Path) -> Path:
    """The directory of DKMS's tree on the machine under `root`, wherever dkms_tree= in framework.conf has moved it."""
    return _Place.of(root).path


class _Place(NamedTuple):
    """Where the tree is. name: as dkms writes it.  path: the directory itself."""

    name: str
    path: Path

    @classmethod
    def of(cls, root: Path) -> _Place:
        name = dkms_framework.framework(root).dkms_tree
        return cls(name, files.inside(root, name))


def registered(root: Path) -> Registered:
    """Every package in DKMS's tree. Directories without a registered version are no packages."""
    packages: dict[str, Package] = {}
    refused: list[str] = []
    place = _Place.of(root)
    for name in _directories(place.path):
        if not names.is_package(name):
            refused.append(names.show(f"{place.name}/{name}"))
        elif known := _package(root, place, name, refused):
            packages[name] = known
    return Registered(packages, tuple(refused))


def package(root: Path, name: str) -> Package | None:
    """One package, None if DKMS has none of that name. Raises NameRefused."""
    return _package(root, _Place.of(root), names.package(name), [])


def installed(packages: Iterable[Package]) -> dict[tuple[str, str], list[tuple[Package, Version, Path]]]:
    """The modules that packages have installed, by kernel and module name: DKMS's own file of each, not followed."""
    modules: dict[tuple[str, str], list[tuple[Package, Version, Path]]] = {}
    for package in packages:
        for version in package.versions:
            for build in version.builds:
                for name in build.files if build.installed else ():
                    key = (build.kernel, names.canonical(names.module_of(name)))
                    modules.setdefault(key, []).append((package, version, build.directory / "module" / name))
    return modules


def unregistered(root: Path, registered: Mapping[str, Package]) -> dict[str, Package]:
    """The packages with a source NAME-VERSION in dkms's source_tree, of which dkms knows no version; each with its highest.

    Another directory is no source that dkms would take: it was unpacked by hand, or is a template.
    """
    known = {f"{name}-{version.version}" for name, package in registered.items() for version in package.versions}
    there: dict[str, list[Version]] = {}
    place = files.inside(root, dkms_framework.framework(root).source_tree)
    for directory in files.names(place):
        source = place / directory
        if directory in known or not os.path.isfile(source / "dkms.conf"):
            continue
        conf = dkms_conf.evaluate(source, root)
        name, version = conf.package_name, conf.package_version
        if f"{name}-{version}" == directory and names.is_package(name) and names.is_package(version) and name not in registered:
            there.setdefault(name, []).append(Version(version, source, _unusable(root, source), (), ()))
    return {
        name: Package(name, (max(versions, key=lambda v: (names.version_key(v.version), v.version)),))
        for name, versions in sorted(there.items())
    }


def conf(root: Path, name: str, version: Version, kernel: str = "", arch: str = "") -> dkms_conf.Conf:
    """The version's dkms.conf with the overrides in /etc/dkms, for one kernel if one is given.

    Raises NameRefused.
    """
    if kernel:
        names.kernel(kernel)
    if arch:
        names.package(arch)
    return dkms_conf.evaluate(version.source, root, names.package(name), version.version, kernel, arch)


def hook_present(root: Path) -> bool:
    """Whether a kernel's installation makes DKMS build the modules that have AUTOINSTALL."""
    if is_switched_off(root):
        return False
    if any(_runs(root, hook) for hook in _DEBIAN_HOOKS):
        return True
    # As systemd finds such files: the first directory that has the name decides, a link to /dev/null is a no.
    return next((_runs(root, hook) for hook in _INSTALL_HOOKS if os.path.lexists(_place(root, hook))), False)


def is_switched_off(root: Path) -> bool:
    """Whether an administrator has switched off what dkms does by itself."""
    return os.path.lexists(_place(root, NO_AUTOINSTALL[1:]))


def _place(root: Path, path: str) -> Path:
    """Where a name is; it may be a link itself."""
    directory, _, name = path.rpartition("/")
    return files.inside(root, f"/{directory}") / name


def _runs(root: Path, hook: str) -> bool:
    path = files.inside(root, hook)
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _directories(path: Path) -> list[str]:
    """The names of the real directories in a directory, sorted."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []


def _link(path: Path) -> tuple[str, int]:
    """Where a link leads, and when it was made; nothing and 0 if it is none."""
    try:
        return os.readlink(path), os.lstat(path).st_mtime_ns
    except OSError:
        return "", 0


def _package(root: Path, place: _Place, name: str, refused: list[str]) -> Package | None:
    directory = place.path / name
    versions = []
    for version in _directories(directory):
        if version == "original_module":
            continue
        if not names.is_package(version):
            refused.append(names.show(f"{place.name}/{name}/{version}"))
        elif os.path.islink(directory / version / "source") or os.path.isdir(directory / version / "source"):
            versions.append(_version(root, place, name, version, refused))
    versions.sort(key=lambda v: (names.version_key(v.version), v.version))
    return Package(name, tuple(versions)) if versions else None


def _version(root: Path, place: _Place, name: str, version: str, refused: list[str]) -> Version:
    directory = place.path / name / version
    builds = []
    leftovers = []
    for kernel in _directories(directory):
        # DKMS lists what starts with a digit; the others are source, build, tarball.
        if not kernel[:1].isdigit():
            continue
        if not names.is_kernel(kernel):
            refused.append(names.show(f"{place.name}/{name}/{version}/{kernel}"))
            continue
        for arch in _directories(directory / kernel):
            build = directory / kernel / arch
            if arch.startswith(".tmp_"):
                leftovers.append(build)
            elif not names.is_package(arch):
                refused.append(names.show(f"{place.name}/{name}/{version}/{kernel}/{arch}"))
            else:
                mark, since = _link(place.path / name / f"kernel-{kernel}-{arch}")
                target = f"{version}/{kernel}/{arch}"
                installed = mark in (target, f"{place.name}/{name}/{target}")
                stuck = not os.path.isdir(build / "module")
                made = tuple(file for file in files.names(build / "module") if names.module_of(file))
                builds.append(Build(kernel, arch, build, made, installed, stuck, since if installed else 0))
    source, broken = _source(root, f"{place.name}/{name}/{version}")
    return Version(version, source, broken, tuple(builds), tuple(leftovers), _link(directory / "source")[1])


def _source(root: Path, directory: str) -> tuple[Path, str]:
    """Where a version's source is, and why it cannot be used ("" if it can). Links are followed inside `root`."""
    path = files.inside(root, f"{directory}/source")
    return path, _unusable(root, path)


def _unusable(root: Path, path: Path) -> str:
    """Why a source cannot be used, "" if it can. The same for everybody who asks: root, and users who may read less."""
    shown = names.clean(files.below(root, path))
    if files.is_hidden(root, path):
        return f"its source is {shown}, {files.HIDDEN}"
    above = next((place for place in reversed(path.parents) if root in place.parents and _is_closed(place, 0o1)), None)
    if above is not None:
        place = names.clean(files.below(root, above))
        return f"{place}, where {shown} lies, is not open to all, and it is compiled without privileges: run chmod a+x {place}"
    conf = files.inside(root, f"{files.below(root, path)}/dkms.conf")
    if _is_closed(path, 0o5) or _is_closed(conf, 0o4):
        return f"{shown} is not readable by all, and is compiled without privileges: run chmod -R a+rX {shown}"
    if not os.path.isdir(path):
        return f"the source directory {shown} does not exist"
    return "" if os.path.isfile(conf) else f"{shown} has no dkms.conf"


def _is_closed(path: Path, bits: int) -> bool:
    """Whether what is there lacks one of these mode bits, or whoever asks may not even look at it."""
    try:
        return os.stat(path).st_mode & bits != bits
    except OSError as e:
        return isinstance(e, PermissionError)
