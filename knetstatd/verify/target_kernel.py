# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel asks of a module, found out from its files without running it.

Its own modules are the witnesses: each carries the vermagic and the struct module of exactly this build. What it exports, with
which checksums, its boot image says, and for its modules these say it themselves. The Module.symvers of its headers is a second
witness, which only speaks alone if there is no image that can be read.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.boot import boot_image
from knetstatd.core import names
from knetstatd.core.errors import Damaged, ImageFault, KernelFileError, ModuleFileError, Unfamiliar
from knetstatd.core.model import Check, Result
from knetstatd.formats import initrd, kernel_image, module_file, modules_dep, symvers
from knetstatd.machine import kernels, paths, signature_policy
from knetstatd.system import files
from knetstatd.verify import compression_check, image_readings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from knetstatd.formats.elf import Machine
    from knetstatd.formats.kernel_image import Image
    from knetstatd.formats.symvers import Export

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
_UTS_VERSION = re.compile(r'^#define UTS_VERSION "(.{1,200})"$', re.M)


class Target(NamedTuple):
    """A kernel, as far as modules are concerned.

    tables: what depmod says.  witness: the kernel's own module from which flags (vermagic without the release, from its
    space on), struct_size (bytes), machine and witness_crcs come. If there is none, it is None, flags and machine are what the
    boot image says, if it can be read, and the others are empty.
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


class Exports(NamedTuple):
    """What a kernel and its own modules export, of the symbols that were asked for.

    symbols: by name.  said_by: the file that says so.
    headers: how the headers agree with it, None if there is nothing to compare.
    """

    symbols: Mapping[str, Export]
    said_by: Path
    headers: Check | None = None


def facts(root: Path, kernel: str, kept: Sequence[Path] = ()) -> Target:
    """The facts of `kernel` under `root`. What is missing is None in the answer; nothing is raised.

    kept: see image_readings; the image is only asked for what neither a module nor a configuration tells.
    """
    tree = files.inside(root, f"/lib/modules/{kernel}")
    tables = modules_dep.Tables(root, tree)
    options, compiler = _configuration(root, kernel)
    its_symvers = next(filter(os.path.isfile, _symvers(root, kernel)), None)
    witness = _witness(tables, kernel)
    if witness is None:
        modversions = "MODVERSIONS" in options if options is not None else None
        flags, machine = "", None
        with contextlib.suppress(KernelFileError):
            image = _image(kernels.started_image(root, kernel), kernel, kept)
            flags, machine = image.vermagic.removeprefix(kernel), kernel_image.MACHINE
            modversions = image.crcs
        return Target(
            kernel, tables, None, flags, 0, machine, {}, modversions, its_symvers, options or frozenset(), options is not None,
            compiler, b"", {},
        )  # fmt: skip
    path, module = witness
    return Target(
        kernel=kernel,
        tables=tables,
        witness=path,
        flags=module.flags,
        struct_size=module.struct_size,
        machine=module.machine,
        witness_crcs=module.crcs or module.ext_crcs or {},
        modversions="modversions" in module.flags.split(),
        symvers=its_symvers,
        options=options or frozenset(),
        configured=options is not None,
        compiler=compiler,
        signature=module.signature or b"",
        hooks=module.hooks,
    )


def exports(root: Path, facts: Target, wanted: set[str], kept: Sequence[Path] = ()) -> Exports:
    """The kernel's exports among `wanted`, and those of its own modules. kept: see image_readings.

    Raises KernelFileError if they cannot be known, ImageFault if the image stands against that.
    """
    asked, fix = wanted | facts.witness_crcs.keys(), f"Reinstall the package of {facts.kernel}'s image"
    path = kernels.started_image(root, facts.kernel)
    try:
        image = _image(path, facts.kernel, kept)
        symbols = symvers.search(io.BytesIO(image.symvers), asked)
    except Damaged as e:
        raise ImageFault(f"What was kept of the kernel's image is damaged: {e}", os.fspath(path or ""), fix) from e
    except KernelFileError as e:
        if isinstance(e.__cause__, Damaged | OSError) and not isinstance(e.__cause__, Unfamiliar | PermissionError):
            raise ImageFault(f"{e.what}; whether it starts is not known", e.where, fix) from e
        return _by_headers(root, facts, asked, e)
    assert path is not None
    magic = facts.kernel + facts.flags
    if _disagree(facts, symbols) or (facts.witness is not None and image.vermagic not in ("", magic)):
        raise ImageFault(
            "The kernel's image is of another build than its modules: their checksums or their version magic differ",
            os.fspath(path),
            fix,
        )
    others, headers = {}, None
    if facts.symvers is not None:
        try:
            others = symvers.find(facts.symvers, asked)
            headers = _compared(root, facts, image, symbols, others)
        except KernelFileError as e:
            headers = Check("headers", Result.WARN, "a Module.symvers", e.where, names.clean(e.what), e.fix)
    of_modules = {name: export for name, export in others.items() if export.module}
    return Exports(_of_modules(facts, wanted - symbols.keys(), of_modules) | symbols, path, headers)


def _image(path: Path | None, kernel: str, kept: Sequence[Path]) -> Image:
    """What the kernel's boot image says. Raises KernelFileError if there is none that can be read and is this kernel's."""
    if path is None:
        raise KernelFileError("The kernel has no image")
    said = boot_image.release(path)  # its header's, which needs no unpacking
    if said in ("", kernel):
        image = image_readings.read(path, kept)
        if image.release == kernel:
            return image
        said = image.release
    raise KernelFileError(f"The kernel's image is of {names.clean(said)}", os.fspath(path))


def _disagree(facts: Target, exports: Mapping[str, Export]) -> bool:
    """Whether checksums are others than those that one of the kernel's own modules was built with."""
    return any(name in exports and exports[name].crc != crc for name, crc in facts.witness_crcs.items())


def _by_headers(root: Path, facts: Target, asked: set[str], why: KernelFileError) -> Exports:
    """What the headers alone say. why: there is nothing better."""
    fix = kernels.headers_fix(root, facts.kernel)
    if facts.symvers is None:
        what = "its headers are not installed, or are not this kernel's"
        raise KernelFileError(
            f"What the kernel exports cannot be known. {why.what}; {what}", why.where or "not found", why.fix or fix
        )
    symbols = symvers.find(facts.symvers, asked)
    if _disagree(facts, symbols):
        raise KernelFileError(
            "The headers are of another build of this kernel: checksums differ from those in the kernel's own modules",
            os.fspath(facts.symvers),
            fix,
        )
    return Exports(symbols, facts.symvers)


def _compared(
    root: Path, facts: Target, image: Image, symbols: Mapping[str, Export], others: Mapping[str, Export]
) -> Check | None:
    """The headers against the image. symbols, others: of what was asked, what each of them says."""
    assert facts.symvers is not None
    mine = next(iter(re.findall(r"#\d.*", image.banner)), image.banner)
    texts = (files.text(facts.symvers.parent / f"include/generated/{name}.h", 4096) or "" for name in ("utsversion", "compile"))
    theirs = next((match[1] for text in texts if (match := _UTS_VERSION.search(text))), "")
    built_in = {name: export for name, export in others.items() if not export.module}
    differ = sorted(name for name in symbols.keys() | built_in.keys() if symbols.get(name) != built_in.get(name))
    if not differ and theirs in ("", mine):
        return Check("headers", Result.PASS, mine, theirs or "they agree with the image")
    reason = "The headers are of another build of this kernel: what is built with them may not load"
    if differ:
        reason = f"{reason}; they differ from its image in {len(differ)} of the symbols that the module uses: {differ[0]}"
    result, fix = Result.FAIL if differ else Result.WARN, kernels.headers_fix(root, facts.kernel)
    return Check("headers", result, names.clean(mine, 200), names.clean(theirs, 200) or os.fspath(facts.symvers), reason, fix)


def _of_modules(facts: Target, wanted: set[str], by_headers: dict[str, Export]) -> dict[str, Export]:
    """What the kernel's own modules export of these, by depmod's table and their own files.

    by_headers: what the headers say of that. They speak for modules that are not installed, and of a symbol that one exports
    which did not come with the kernel; for all, if there is no table. Raises KernelFileError if it cannot be known.
    """
    symbols: dict[str, Export] = {}
    owners = facts.tables.exporters(wanted) if wanted else {}
    if owners is None and by_headers:
        return by_headers
    if owners is None:
        fix = f"Run: depmod {facts.kernel}"
        raise KernelFileError(
            "Which module exports what the kernel does not have: depmod's table of it is missing", "modules.symbols", fix
        )
    for owner in dict.fromkeys(owners.values()):
        for path in facts.tables.shipped(owner)[:1]:
            try:
                module = module_file.from_path(path)
            except ModuleFileError as e:
                raise KernelFileError(
                    f"A module of the kernel {e.what}", os.fspath(path), f"Reinstall the package of {facts.kernel}'s image"
                ) from e
            for name in wanted & module.exports.keys():
                symbols.setdefault(name, module.exports[name])
    known = owners or {}
    others = {name: export for name, export in by_headers.items() if name in known or not facts.tables.shipped(export.module)}
    return others | symbols


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
