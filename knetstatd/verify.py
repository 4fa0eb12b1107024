# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this file load on that kernel? Answered from files alone, for a kernel that need not run.

Rule 1: what cannot be known is UNKNOWN and says what is missing; it is never a pass.
Rule 2: the answer depends on nothing but the files that `inputs` names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import checks, depmod, files, kernels, ko, names, symvers, target
from .errors import KernelFileError, ModuleFileError
from .model import Check, Proof, Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from .symvers import Export
    from .target import Target


def verify(root: Path, kernel: str, path: Path, *, others: Iterable[Path] = (), facts: Target | None = None) -> Proof:
    """Whether the module file `path`, wherever it lies, will load on `kernel` of the system under `root`.

    others: files of out-of-tree modules that will be loaded before it, those of the same DKMS package for one.
    facts: of that kernel, where the caller has them. Raises nothing for whatever the files contain.
    """
    facts = facts or target.read(root, kernel)
    try:
        module = ko.read(path)
    except ModuleFileError as e:
        fix = f"Run: knetstatctl build {kernel}"
        return Proof(os.fspath(path), (Check("file", Result.FAIL, "a kernel module", e.what, f"It {e.what}", fix),))
    found = " ".join(names.clean(word) for word in (module.name, module.version) if word)
    done = [
        Check("file", Result.PASS, found=found),
        checks.machine(module, facts),
        checks.release(module, facts),
        checks.vermagic(module, facts),
        checks.struct_module(module, facts),
    ]
    loaded = _others(path, others)
    try:
        exported = _exported(root, facts, module, loaded)
    except KernelFileError as e:
        unknown = Check("", Result.UNKNOWN, "the kernel's Module.symvers", e.where, e.what, e.fix)
        done += [unknown._replace(name=name) for name in ("symbols", "crcs")]
    else:
        came = frozenset(loaded)
        done += [
            checks.symbols(module, facts, exported),
            checks.exports(module, exported),
            checks.depends(module, facts, exported, came),
            checks.crcs(module, facts, exported, came),
        ]
    return Proof(os.fspath(path), tuple(done))


def prove(root: Path, kernel: str, module: str, facts: Target | None = None) -> Proof:
    """The proof of an installed module: which file modprobe takes for `module` on `kernel`, and whether that will load.

    facts: of that kernel, where the caller has them already.
    """
    facts = facts or target.read(root, kernel)
    tables, fix = facts.tables, f"Run: depmod {kernel}"
    entry = tables.entry(module)
    if entry is None:
        path = min(depmod.added(tables.tree, module), default=None)
        if path is None:
            missing = Check(
                "file",
                Result.FAIL,
                f"{names.canonical(module)}.ko",
                "no such file",
                f"The module is not installed for {kernel}",
                f"Run: knetstatctl build {kernel}",
            )
            return Proof("", (missing,))
        why = "modprobe does not find it: " + ("modules.dep lacks it" if tables.found else "depmod has not run")
        return _and(Check("depmod", Result.FAIL, os.fspath(path), "nothing", why, fix), verify(root, kernel, path, facts=facts))
    if not os.path.lexists(entry.file):
        why = "modules.dep names a file that is gone"
        return Proof("", (Check("depmod", Result.FAIL, os.fspath(entry.file), "no such file", why, fix),))
    found = Check("depmod", Result.PASS, found=os.fspath(entry.file))
    if not tables.is_indexed(entry):
        why = "modules.dep names it; modules.dep.bin, which modprobe reads, does not"
        found = Check("depmod", Result.FAIL, os.fspath(entry.file), "nothing", why, fix)
    return _and(found, verify(root, kernel, entry.file, others=entry.added, facts=facts))


def chosen(root: Path, kernel: str, module: str) -> Path | None:
    """The file that modprobe takes for `module` on `kernel`, None where it knows none; the file itself may be gone."""
    entry = depmod.Tables(root, files.inside(root, f"/lib/modules/{kernel}")).entry(module)
    return entry.file if entry else None


def inputs(root: Path, kernel: str, path: Path, others: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The files on which an answer depends, also those that do not exist: with the same identities it stays the same."""
    tree = files.inside(root, f"/lib/modules/{kernel}")
    added = [tree / name for name in ("updates", "updates/dkms", "extra")]
    return (path, *others, *added, *target.inputs(root, kernel))


def _and(first: Check, proof: Proof) -> Proof:
    return proof._replace(checks=(first, *proof.checks))


def _others(path: Path, others: Iterable[Path]) -> dict[str, Mapping[str, Export]]:
    """What the modules loaded before export, by module. One that cannot be read exports nothing: it will not load either."""
    found: dict[str, Mapping[str, Export]] = {}
    for other in others:
        if other != path:
            try:
                module = ko.read(other)
            except ModuleFileError:
                continue
            found[module.name] = module.exports
    return found


def _exported(root: Path, facts: Target, module: ko.Module, others: Mapping[str, Mapping[str, Export]]) -> dict[str, Export]:
    """All exports that matter to `module`. Raises KernelFileError where the kernel's cannot be known."""
    if facts.symvers is None:
        raise KernelFileError(
            "What the kernel exports cannot be known: its headers are not installed, or are not this kernel's",
            "not found",
            kernels.headers_fix(root, facts.kernel),
        )
    used = {checks.LAYOUT, *module.undefined, *module.weak}
    found = symvers.find(facts.symvers, {*used, *module.exports, *facts.witness_crcs})
    if any(name in found and found[name].crc != crc for name, crc in facts.witness_crcs.items()):
        raise KernelFileError(
            "The headers are of another build of this kernel: checksums differ from those in the kernel's own modules",
            os.fspath(facts.symvers),
            kernels.headers_fix(root, facts.kernel),
        )
    for name, exports in others.items():
        for symbol in used & exports.keys():
            # An added module wins over the kernel's of the same name; a symbol of anything else is where it always was.
            if symbol not in found or found[symbol].module == name:
                found[symbol] = exports[symbol]
    return found
