# SPDX-License-Identifier: GPL-2.0-or-later
"""dkms.conf, read without running it.

Rule 1: dkms.conf is a shell script, and it is never executed here (see shellfile). What needs a shell is named in
        `dynamic`, not guessed.
Rule 2: the files and their order are dkms's: dkms.conf, then the overrides in /etc/dkms, the more special later.
Rule 3: dkms evaluates each value twice: once in the file, once more inside double quotes when it takes it over. So a
        variable in single quotes is expanded as well, and runs of spaces become one.
Rule 4: no text raises.

Sources: dkms(8), "DKMS.CONF" and "DKMS.CONF OVERRIDES"; dkms 3.0.10's and 3.4's reading of them, compared by
tests/unit/machine/test_dkms_conf.py; bash(1), "QUOTING", "Arrays", "Parameter Expansion".
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.dkms import dkms_framework, dkms_program
from knetstatd.formats.shell_assignments import Shell
from knetstatd.system import files, kernel_pattern

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAKE_VARIABLE = re.compile(r"(?:^|\s)([A-Za-z_]\w*)[:?+]?=(\"[^\"]*\"|'[^']*'|\S*)")
# What means something between double quotes.
_SPECIAL = re.compile(r'[$`"\\]')
# What is set when dkms reads the file, and not always known here.
_UNKNOWN = (
    "kernelver kernel_source_dir arch module module_version parallel_jobs HOME PATH PWD USER SHELL HOSTNAME TMPDIR"
).split()
_KERNEL = "\0"  # stands for the kernel's release
# The variables that dkms takes over, in the order in which it does: an earlier one can be used in a later one.
_TAKEN = (
    "CLEAN PACKAGE_NAME PACKAGE_VERSION BUILD_DEPENDS BUILD_EXCLUSIVE_KERNEL BUILD_EXCLUSIVE_KERNEL_MIN "
    "BUILD_EXCLUSIVE_KERNEL_MAX BUILD_EXCLUSIVE_ARCH BUILD_EXCLUSIVE_CONFIG OBSOLETE_BY MAKE MAKE_MATCH BUILT_MODULE_NAME "
    "BUILT_MODULE_LOCATION DEST_MODULE_NAME DEST_MODULE_LOCATION AUTOINSTALL"
).split()


class Module(NamedTuple):
    """One module that dkms.conf says is built: names without .ko, as dkms derives them from each other.

    name, place: where make leaves it, in the source.  dest_name: its name when installed.
    dest: DEST_MODULE_LOCATION, which most distributions replace by their own.
    """

    name: str
    dest_name: str
    place: str
    dest: str


class Make(NamedTuple):
    """One MAKE[n]. match: MAKE_MATCH[n].  variables: those that the command line sets for make."""

    command: str
    match: str
    variables: tuple[tuple[str, str], ...]


class Conf(NamedTuple):
    """What dkms.conf says. dynamic: variables whose value needs a shell; their fields show the text as it stands.

    autoinstall: the raw value.  faults: what dkms refuses the file for; nothing that a shell may put right.
    sources: the files that were read.  crlf: that of them whose lines end in CR LF, so that bash has the CR in the values.
    build_depends: the packages that it is built after.
    """

    package_name: str
    package_version: str
    modules: tuple[Module, ...]
    make: tuple[Make, ...]
    autoinstall: str
    exclusive: Mapping[str, str]
    dynamic: frozenset[str]
    faults: tuple[str, ...]
    sources: tuple[str, ...]
    crlf: str = ""
    build_depends: tuple[str, ...] = ()

    def knows(self, variable: str) -> bool:
        """Whether the variable's value is known without a shell."""
        return variable not in self.dynamic

    def excludes(self, kernel: str) -> bool:
        """Whether dkms would not build for a kernel of this release, or not install beside its own module of the name."""
        known = {name: value for name, value in self.exclusive.items() if self.knows(name)}
        only, first = known.get("BUILD_EXCLUSIVE_KERNEL"), known.get("BUILD_EXCLUSIVE_KERNEL_MIN")
        last = known.get("BUILD_EXCLUSIVE_KERNEL_MAX") or known.get("OBSOLETE_BY")
        if only and (answer := kernel_pattern.matches(only, kernel)) is not True:
            return answer is False  # else nobody can tell
        mine = names.version_key(kernel)
        return bool((first and mine < names.version_key(first)) or (last and mine > names.version_key(last)))

    def obsolete(self, kernel: str) -> str:
        """OBSOLETE_BY, if a kernel of this release has the module itself by it; "" if not (check_version_sanity() in dkms)."""
        value = self.exclusive.get("OBSOLETE_BY", "") if self.knows("OBSOLETE_BY") else ""
        (upstream, _, build), (mine, _, my_build) = value.partition("-"), kernel.partition("-")
        first, last = names.version_key(upstream), names.version_key(mine)
        later = last > first or (last == first and (not build or names.version_key(my_build) >= names.version_key(build)))
        return value if later else ""


def evaluate(source: Path, root: Path, module: str = "", version: str = "", kernel: str = "", arch: str = "") -> Conf:
    """dkms.conf in the directory `source`, with the overrides of /etc/dkms for whatever else is given.

    module, version, kernel and arch become parts of file names: validated ones (see names). Raises nothing; a file
    that is not there has no settings, and the faults say so.
    """
    trees = dkms_framework.framework(root)
    given = {"dkms_tree": trees.dkms_tree, "source_tree": trees.source_tree, "install_tree": trees.install_tree}
    given |= {name: v for name, v in (("arch", arch), ("module", module), ("module_version", version)) if v}
    sources, texts = [], []
    there = files.names(files.inside(root, "/etc/dkms"))
    program = dkms_program.program(root)
    by_kernel = _overrides_by_kernel(module, kernel, arch) if program.by_kernel else ()
    wanted = (f"{name}.conf" for name in (*_overrides(module, version, kernel, arch), *by_kernel))
    overrides = (files.inside(root, f"/etc/dkms/{name}") for name in wanted if name in there)
    for path in (files.followed(root, source / "dkms.conf"), *overrides):
        if (text := files.text(path, 1 << 18)) is not None:
            texts.append(text.replace("\0", ""))
            sources.append(os.fspath(path))
    said = _said(tuple(texts), tuple(given.items()), kernel, strip=program.strips_cr)
    conf = _conf(said.values, said.dynamic, tuple(sources))
    if said.crlf is None:
        return conf
    return conf._replace(crlf=sources[said.crlf], faults=("its lines end in CR LF, as Windows writes them",))


class _Said(NamedTuple):
    """What the texts of a dkms.conf assign. crlf: which of them was the first to leave a CR in a value.

    mixed: whether a kernel's name stands in a value beside what a shell evaluates once more.
    """

    values: dict[str, dict[int, str]]
    dynamic: frozenset[str]
    crlf: int | None
    mixed: bool


def _said(texts: tuple[str, ...], given: tuple[tuple[str, str], ...], kernel: str, *, strip: bool) -> _Said:
    """What the texts say for a kernel. They are evaluated once for all kernels: the answers differ in a name alone.

    A release has no character that means anything to a shell, and no text has a NUL, which can so stand for the release.
    """
    said = _evaluated(texts, given, _KERNEL if kernel else "", strip=strip)
    if said.mixed:
        return _evaluated(texts, given, kernel, strip=strip)
    values = {name: {i: v.replace(_KERNEL, kernel) for i, v in array.items()} for name, array in said.values.items()}
    return said._replace(values=values)


@functools.lru_cache(maxsize=128)
def _evaluated(texts: tuple[str, ...], given: tuple[tuple[str, str], ...], kernel: str, *, strip: bool) -> _Said:
    of_kernel = {"kernelver": kernel, "kernel_source_dir": f"/lib/modules/{kernel}/build"} if kernel else {}
    shell, crlf, mixed = Shell({**of_kernel, **dict(given)}, _UNKNOWN), None, False
    for number, text in enumerate(texts):
        mixed |= _take(shell, text, strip=strip)
        decisive = (array for name, array in shell.values.items() if name not in ("AUTOINSTALL", "CLEAN"))
        if crlf is None and any("\r" in value for array in decisive for value in array.values()):
            crlf = number
    return _Said(shell.values, frozenset(shell.dynamic), crlf, mixed)


def _overrides(module: str, version: str, kernel: str, arch: str) -> list[str]:
    """The names of the override files, in the order in which dkms reads them."""
    parts = [module, version, kernel, arch]
    return ["-".join(parts[:n]) for n in (1, 2, 3, 4) if all(parts[:n])]


def _overrides_by_kernel(module: str, kernel: str, arch: str) -> list[str]:
    """The names of those for any version of a package, read after the others; dkms 3.0 has none of them."""
    overrides = [f"{module}--{kernel}"] if module and kernel else []
    return overrides + ([f"{module}--{kernel}-{arch}"] if module and kernel and arch else [])


def _take(shell: Shell, text: str, *, strip: bool) -> bool:
    """One file, as dkms takes it over: its own variables, each evaluated once more (Rule 3). strip: without a last CR.

    Returns whether a value that is evaluated once more has _KERNEL in it.
    """
    shell.run(text)
    mixed = False
    first, shell.values = shell.values, {}
    for name in _TAKEN:
        for index, value in sorted(first.get(name, {}).items()):
            plain = re.sub(r"[ \t\n]+", " ", value.removesuffix("\r") if strip else value)
            if not _SPECIAL.search(plain):
                shell.values.setdefault(name, {})[index] = plain
                continue
            mixed |= _KERNEL in plain
            again = f'"{plain}"'
            word = shell.value(again, 0)
            understood = word.static and word.end == len(again)
            if not understood:
                shell.dynamic.add(name)
            shell.values.setdefault(name, {})[index] = word.text if understood else value
    # The file's other variables end with it.
    shell.dynamic = set(_TAKEN) if "*" in shell.dynamic else shell.dynamic & set(_TAKEN)
    return mixed


def chosen_make(conf: Conf, kernel: str) -> Make | None:
    """The MAKE that dkms runs for a kernel, None if it uses its own default (make -C HEADERS M=BUILD)."""
    chosen = conf.make[0] if conf.make and not conf.make[0].match else None
    for make in conf.make:
        if make.command and make.match and kernel_pattern.matches(make.match, kernel):
            chosen = make
    return chosen if chosen and chosen.command else None


def _conf(values: dict[str, dict[int, str]], unknown: frozenset[str], sources: tuple[str, ...]) -> Conf:
    def get(name: str, index: int = 0) -> str:
        return values.get(name, {}).get(index, "")

    def length(*arrays: str) -> int:
        return max((max(values.get(name) or [-1]) + 1 for name in arrays), default=0)

    faults = [] if sources else ["there is no dkms.conf"]
    faults += [f"{name} is not set" for name in ("PACKAGE_NAME", "PACKAGE_VERSION") if not get(name) and name not in unknown]
    arrays = ("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION")
    count = length(*arrays)
    modules = []
    for i in range(count):
        name = get("BUILT_MODULE_NAME", i) or (get("PACKAGE_NAME") if count == 1 else "")
        place, dest = get("BUILT_MODULE_LOCATION", i), get("DEST_MODULE_LOCATION", i)
        module = Module(name, get("DEST_MODULE_NAME", i) or name, place + "/" * (place[-1:] not in ("", "/")), dest)
        if not unknown & {"BUILT_MODULE_NAME", "DEST_MODULE_NAME", "PACKAGE_NAME"}:
            faults += [] if name else [f"BUILT_MODULE_NAME[{i}] is not set"]
            faults += [f"{n} ends in .o or .ko" for n in sorted({name, module.dest_name}) if n.endswith((".o", ".ko"))]
        if not dest.startswith(("/kernel", "/updates", "/extra")) and "DEST_MODULE_LOCATION" not in unknown:
            faults.append(f"DEST_MODULE_LOCATION[{i}] does not begin with /kernel, /updates or /extra")
        modules.append(module)
    if not modules and not unknown & set(arrays):
        faults.append("it names no module: there is no DEST_MODULE_LOCATION")
    makes = []
    for i in range(length("MAKE")):
        command = get("MAKE", i)
        variables = tuple((name, value.strip("'\"")) for name, value in _MAKE_VARIABLE.findall(command))
        makes.append(Make(command, get("MAKE_MATCH", i), variables))
    exclusive = {
        f"{name}[{i}]" if i else name: value
        for name, array in sorted(values.items())
        for i, value in sorted(array.items())
        if name.startswith(("BUILD_EXCLUSIVE_", "OBSOLETE_BY")) and value
    }
    return Conf(
        get("PACKAGE_NAME"),
        get("PACKAGE_VERSION"),
        tuple(modules),
        tuple(makes),
        get("AUTOINSTALL"),
        exclusive,
        unknown,
        tuple(faults),
        sources,
        build_depends=tuple(" ".join(value for _, value in sorted(values.get("BUILD_DEPENDS", {}).items())).split()),
    )
