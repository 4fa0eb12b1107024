# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel asks of a module, found out from its files without running it.

Its own modules are the witnesses: each carries the vermagic and the struct module of exactly this build. What it exports, with
which checksums, says the Module.symvers of its headers, and only one that is proven to be of this kernel is used.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import ModuleFileError
from knetstatd.formats import initrd, module_file, modules_dep
from knetstatd.machine import kernels, paths, signature_policy
from knetstatd.system import files
from knetstatd.verify import compression_check

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from knetstatd.formats.elf import Machine

_OPTIONS = (
    "MODVERSIONS",
    "MODULE_FORCE_LOAD",
    "MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS",
    "DEBUG_INFO_BTF_MODULES",
    "MODULE_ALLOW_BTF_MISMATCH",
    *signature_policy.OPTIONS,
    *compression_check.OPTIONS,
    *initrd.OPTIONS.values(),
)
# Of so many modules, spread over the list, the smallest are read; with 4,200 modules that costs 0.3 ms and finds one of 10 KB.
_SAMPLE, _TRIES = 48, 12


class Target(NamedTuple):
    """A kernel, as far as modules are concerned.

    tables: what depmod says.  witness: the kernel's own module from which flags (vermagic without the release, from its
    space on), struct_size (bytes), machine and witness_crcs come; None if there is none, and the others are empty then.
    modversions: whether checksums decide; None if neither a module nor a configuration tells.
    symvers: its Module.symvers, None if the headers are not installed.  options: of CONFIG_*, the ones set to `y`.
    configured: whether a configuration was found.  compiler: as that has it, "" if it does not say.
    signature: PKCS#7 data of the witness, b"" if it is not signed.  hooks: where its struct module has its functions.
    """

    kernel: str
    tables: modules_dep.Tables
    witness: Path | None
    flags: str
    struct_size: int
    machine: Machine | None
    witness_crcs: Mapping[str, int]
    modversions: bool | None
    symvers: Path | None
    options: frozenset[str]
    configured: bool
    compiler: str
    signature: bytes
    hooks: Mapping[str, int]


def facts(root: Path, kernel: str) -> Target:
    """The facts of `kernel` under `root`. What is missing is None in the answer; nothing is raised."""
    tree = files.inside(root, f"/lib/modules/{kernel}")
    tables = modules_dep.Tables(root, tree)
    options, compiler = _configuration(root, kernel)
    symvers = next(filter(os.path.isfile, _symvers(root, kernel)), None)
    witness = _witness(tables, kernel)
    if witness is None:
        modversions = "MODVERSIONS" in options if options is not None else None
        known = options is not None
        return Target(
            kernel, tables, None, "", 0, None, {}, modversions, symvers, options or frozenset(), known, compiler, b"", {}
        )
    path, module = witness
    crcs = module.crcs or module.ext_crcs or {}
    modversions = "modversions" in module.flags.split()
    return Target(
        kernel=kernel,
        tables=tables,
        witness=path,
        flags=module.flags,
        struct_size=module.struct_size,
        machine=module.machine,
        witness_crcs=crcs,
        modversions=modversions,
        symvers=symvers,
        options=options or frozenset(),
        configured=options is not None,
        compiler=compiler,
        signature=module.signature or b"",
        hooks=module.hooks,
    )


def _witness(tables: modules_dep.Tables, kernel: str) -> tuple[Path, module_file.Module] | None:
    """One of the kernel's own modules, a small one. One that something else put there (no `intree`) is no witness.

    One with an init and an exit function is preferred: it tells where these are in struct module.
    """
    first, sizes, tree = None, [], os.fspath(tables.tree)
    for name in tables.in_tree(_SAMPLE):
        for suffix in names.SUFFIXES if not tables.depmod_ran else ("",):
            try:
                st = os.lstat(f"{tree}/{name}{suffix}")
            except (OSError, ValueError):
                continue
            if stat.S_ISREG(st.st_mode):
                sizes.append((st.st_size, name + suffix))
    for _, name in sorted(sizes)[:_TRIES]:
        try:
            module = module_file.from_path(tables.tree / name)
        except ModuleFileError:
            continue
        if module.intree and module.release == kernel:
            first = first or (tables.tree / name, module)
            if len(module.hooks) == 2:
                return tables.tree / name, module
    return first


def options(root: Path, kernel: str) -> frozenset[str] | None:
    """Of CONFIG_*, the options that matter and are set to `y`; None if there is no configuration."""
    return _configuration(root, kernel)[0]


def _configuration(root: Path, kernel: str) -> tuple[frozenset[str] | None, str]:
    """The options that matter, None if there is no configuration, and the compiler that the kernel was built with."""
    for path in paths.configurations(root, kernel):
        if (text := kernels.configuration(path)) is not None:
            options = frozenset(name for name in _OPTIONS if f"\nCONFIG_{name}=y\n".encode() in text)
            return options, kernels.cc_version(text)
    return None, ""


def _symvers(root: Path, kernel: str) -> Iterator[Path]:
    """The candidates that may be believed: headers must say themselves that they are this kernel's (`build` is only a link)."""
    releases = paths.releases(root, kernel)
    for number, path in enumerate(paths.symvers(root, kernel)):
        if number >= len(releases) or kernels.uts_release(releases[number]) == kernel:
            yield path
