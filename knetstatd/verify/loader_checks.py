# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks of the proof: each compares one thing of a module with a kernel, and answers as that kernel would.

Rule 1: pure: no file, no clock. Whoever calls them has read the module, the kernel's facts and its exports.
Rule 2: the rules are the kernel's, read in 5.10, 6.1, 6.12 and 7.3 (kernel/module/main.c, version.c); quotes are its words.
Rule 3: "compiled for another kernel" and "will not load" are two facts. If both sides have MODVERSIONS the kernel
        ignores the release and compares checksums; else the release decides (same_magic()).
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

from knetstatd.core import names
from knetstatd.core.model import Check, Result

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from knetstatd.formats.module_file import Module
    from knetstatd.formats.symvers import Export
    from knetstatd.verify.target_kernel import Target

LAYOUT = "module_layout"
_SHOWN = 5
# license_is_gpl_compatible(), linux/license.h.
_GPL = ("GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL")
_X86 = (3, 62)  # e_machine
# "gcc-12 (Debian 12.2.0-14) 12.2.0", "GCC: (crosstool-NG 1.25.0) 12.2.0", "clang version 17.0.6": not what is in brackets.
_PACKAGED, _VERSION = re.compile(r"\([^()]*\)"), re.compile(r"(?:^|\s)(\d+)\.\d")
_FORCE_LOAD, _NAMESPACES = "MODULE_FORCE_LOAD", "MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS"
_BTF, _BTF_MISMATCH = "DEBUG_INFO_BTF_MODULES", "MODULE_ALLOW_BTF_MISMATCH"
_NO_WITNESS = "none of the kernel's own modules can be read to compare with"


def machine(module: Module, facts: Target) -> Check:
    """The processor and the ELF class that the code is for."""
    code = str(module.machine)
    if facts.machine is None:
        return Check("machine", Result.UNKNOWN, "", code, _NO_WITNESS)
    if facts.machine == module.machine:
        return Check("machine", Result.PASS, found=code)
    return Check("machine", Result.FAIL, str(facts.machine), code, "The kernel refuses code for another machine")


def release(module: Module, facts: Target) -> Check:
    """The kernel that the module was compiled for, by name."""
    if not module.vermagic:
        return _forced("release", facts, facts.kernel, "no vermagic", "bad vermagic")
    if module.release == facts.kernel:
        return Check("release", Result.PASS, facts.kernel, module.release)
    compiled_for = names.clean(module.release)
    if facts.modversions and module.crcs is not None:
        reason = "Compiled for another kernel; this one ignores that and compares checksums (CONFIG_MODVERSIONS)"
        return Check("release", Result.WARN, facts.kernel, compiled_for, reason, rebuild(facts))
    if facts.modversions is None:
        reason = "Compiled for another kernel; whether this one ignores that (CONFIG_MODVERSIONS) cannot be seen"
        return Check("release", Result.UNKNOWN, facts.kernel, compiled_for, reason, rebuild(facts))
    return Check("release", Result.FAIL, facts.kernel, compiled_for, _magic(module, facts), rebuild(facts))


def vermagic(module: Module, facts: Target) -> Check:
    """The options of the kernel that vermagic names: SMP, preempt, mod_unload, modversions, …"""
    if not facts.flags:
        return Check("vermagic", Result.UNKNOWN, "", names.clean(module.flags), _NO_WITNESS)
    expected, flags = facts.flags.strip(), names.clean(module.flags).strip()
    if not module.vermagic:
        return Check("vermagic", Result.NOT_APPLICABLE, expected, reason="The module has no vermagic")
    if module.flags == facts.flags:
        return Check("vermagic", Result.PASS, expected, flags)
    return Check("vermagic", Result.FAIL, expected, flags, _magic(module, facts), rebuild(facts))


def form(module: Module, facts: Target) -> Check:
    """The ELF file itself: whether the kernel would lay it out, and relocate it, as its linker meant it."""
    expected = "an ELF file as a linker writes it"
    if module.form is None:
        reason = f"What a kernel refuses in relocations for {module.machine} is not known here"
        return Check("form", Result.UNKNOWN, expected, "", reason)
    if not module.form:
        return Check("form", Result.PASS, found=expected)
    reason = f"The file is damaged: {names.clean(module.form, 200)}"
    return Check("form", Result.FAIL, expected, "damaged", reason, rebuild(facts))


def struct_module(module: Module, facts: Target) -> Check:
    """The size of struct module, which depends on the kernel's configuration; 6.12 compares it first, 6.1 not at all."""
    if facts.witness is None:
        return Check("struct-module", Result.UNKNOWN, "", f"{module.struct_size} bytes", _NO_WITNESS)
    expected, actual = f"{facts.struct_size} bytes", f"{module.struct_size} bytes"
    moved = [name for name, at in module.hooks.items() if facts.hooks.get(name, at) != at]
    if moved:
        reason = f"Compiled for another struct module, or damaged: {names.clean(moved[0])} is at another place in it"
        expected, actual = (f"at byte {at[moved[0]]}" for at in (facts.hooks, module.hooks))
        return Check("struct-module", Result.FAIL, expected, actual, reason, rebuild(facts))
    if module.struct_size == facts.struct_size:
        return Check("struct-module", Result.PASS, expected, actual)
    reason = (
        "Compiled for a kernel with another struct module: '.gnu.linkonce.this_module section size must match the "
        "kernel's built struct module size at run time'"
    )
    return Check("struct-module", Result.FAIL, expected, actual, reason, rebuild(facts))


def btf(module: Module, facts: Target) -> Check:
    """The type information (BTF), which a kernel may read before it loads the module. Only how it begins is looked at.

    What follows, btf_parse_module() checks against the kernel's own types, which are not at hand.
    """
    if module.btf is None:
        return Check("btf", Result.NOT_APPLICABLE, reason="It has no type information")
    insists = not facts.configured or (_BTF in facts.options and _BTF_MISMATCH not in facts.options)
    if module.btf and (module.intree or not insists):
        return Check("btf", Result.PASS, found="begins as type information does")
    if module.btf:
        reason = "This kernel refuses a module if its type information is damaged; only a rehearsal tells whether it is"
        return Check("btf", Result.UNKNOWN, "type information (BTF)", "begins as type information does", reason)
    expected, actual = "type information (BTF)", "damaged"
    if not facts.configured:
        reason = "Whether this kernel reads it (CONFIG_DEBUG_INFO_BTF_MODULES) cannot be seen"
        return Check("btf", Result.UNKNOWN, expected, actual, reason, rebuild(facts))
    if _BTF not in facts.options:
        return Check("btf", Result.NOT_APPLICABLE, expected, actual, "This kernel does not read it")
    if _BTF_MISMATCH in facts.options:
        reason = "This kernel goes without it (CONFIG_MODULE_ALLOW_BTF_MISMATCH)"
        return Check("btf", Result.WARN, expected, actual, reason, rebuild(facts))
    reason = f"'failed to validate module [{names.clean(module.name)}] BTF'"
    return Check("btf", Result.FAIL, expected, actual, reason, rebuild(facts))


def symbols(module: Module, facts: Target, exports: Mapping[str, Export], said_by: str) -> Check:
    """Whether the kernel and the modules loaded before export all that the module uses, to a module of its licence.

    said_by: the file that says what the kernel exports.
    """
    expected = f"{len(module.undefined)} symbols"

    def fail(symbols_at_fault: Collection[str], reason: str, fix: str) -> Check:
        return Check("symbols", Result.FAIL, expected, some(symbols_at_fault), reason, fix)

    absent = [name for name in module.undefined if name not in exports and not _ignored(module, name)]
    if absent:
        return fail(absent, f"The kernel does not export them: 'Unknown symbol {names.clean(absent[0], 100)}'", rebuild(facts))
    free = module.license in _GPL
    withheld = [name for name in module.undefined if name in exports and exports[name].gpl_only and not free]
    if withheld:
        licence = names.show(module.license) if module.license else "none"
        reason = f"They are exported to GPL-compatible modules only; the module's licence is {licence}"
        return fail(withheld, reason, "Only the module's author can change that")
    if module.common:
        return fail(module.common, "'please compile with -fno-common'", "Add -fno-common to the module's flags")
    used = [name for name in (*module.undefined, *module.weak) if name in exports and (free or not exports[name].gpl_only)]
    closed = [name for name in used if not _imported(module, exports[name].namespace)]
    if not closed:
        return Check("symbols", Result.PASS, expected, f"all exported, by {said_by}")
    spaces = some(sorted({exports[name].namespace for name in closed}))
    reason = f"The module does not import the namespaces they belong to: {spaces}"
    if _NAMESPACES in facts.options:
        return Check("symbols", Result.WARN, expected, some(closed), f"{reason}; this kernel only warns of that")
    return fail(closed, reason, "Add MODULE_IMPORT_NS() to the module's source")


def exports(module: Module, exported: Mapping[str, Export]) -> Check:
    """Whether what the module itself exports is free: the kernel refuses a second export of a name."""
    taken = [name for name in module.exports if name in exported and exported[name].module != module.name]
    if not module.exports:
        return Check("exports", Result.NOT_APPLICABLE, reason="It exports nothing")
    if not taken:
        return Check("exports", Result.PASS, found=f"{len(module.exports)} symbols")
    built_in = [name for name in taken if not exported[name].module]
    if built_in:
        reason = f"The kernel has them already: 'exports duplicate symbol {names.clean(built_in[0], 100)}'"
        return Check("exports", Result.FAIL, "names of its own", some(built_in), reason)
    owners = some(sorted({exported[name].module for name in taken}))
    reason = f"A module of the kernel exports them too; only one of the two can be loaded: {owners}"
    return Check("exports", Result.WARN, "names of its own", some(taken), reason)


def depends(module: Module, facts: Target, exports: Mapping[str, Export], others: Collection[str]) -> Check:
    """Whether the modules that export what is used are installed for the kernel. others: names known to come with it."""
    used = {exports[name].module for name in (*module.undefined, *module.weak) if name in exports}
    needed = sorted(used - {"", *others})
    if not needed:
        return Check("depends", Result.PASS, found="no other module of the kernel")
    if not facts.tables.depmod_ran:
        reason = f"depmod has not run for {facts.kernel}, so nothing tells whether they are installed"
        return Check("depends", Result.UNKNOWN, some(needed), "", reason, f"Run: depmod {facts.kernel}")
    absent = [name for name in needed if not facts.tables.has(name)]
    if not absent:
        return Check("depends", Result.PASS, some(needed), "installed")
    reason = "It uses symbols of modules that this kernel could have but that are not installed"
    return Check("depends", Result.FAIL, some(needed), f"not installed: {some(absent)}", reason)


def crcs(module: Module, facts: Target, exports: Mapping[str, Export], others: Collection[str]) -> Check:
    """The checksums of the used symbols' types, as the module was compiled, against those that the kernel exports."""
    if facts.modversions is None:
        return Check("crcs", Result.UNKNOWN, reason="Whether this kernel compares checksums cannot be seen")
    if not facts.modversions:
        reason = "This kernel has no CONFIG_MODVERSIONS: it compares the release"
        return Check("crcs", Result.NOT_APPLICABLE, reason=reason)
    table = module.crcs if module.ext_crcs is None else module.ext_crcs
    if table is None:
        return _forced("crcs", facts, "a checksum for each symbol", "none", LAYOUT)
    # The kernel looks at module_layout before anything else. Another module's export may come without a checksum.
    used = [
        name
        for name in dict.fromkeys((LAYOUT, *module.undefined, *module.weak))
        if name in exports and (exports[name].crc or exports[name].module not in others)
    ]
    differ = [name for name in used if name in table and table[name] != exports[name].crc]
    # A name that the extended table leaves out is let through (check_version()).
    absent = [name for name in used if name not in table] if module.ext_crcs is None else []
    expected = f"{len(used)} checksums as in {facts.kernel}"
    if not differ and not absent:
        return Check("crcs", Result.PASS, expected, "all equal")
    faults = [f"{len(which)} {what}: {some(which)}" for what, which in (("differ", differ), ("missing", absent)) if which]
    first, said = (differ[0], "disagrees about version of symbol") if differ else (absent[0], "no symbol version for")
    reason = f"'{said} {names.clean(first, 100)}'"
    return Check("crcs", Result.FAIL, expected, "; ".join(faults), reason, rebuild(facts))


def compiler(module: Module, facts: Target) -> Check:
    """The compiler of the module against the kernel's; kbuild itself only warns of it, plugins and BTF may break by it."""
    expected, actual = facts.compiler, names.clean(module.compiler, 120)
    if not expected or not actual:
        missing = "the kernel's configuration" if not expected else "the module (it has no .comment)"
        return Check("compiler", Result.UNKNOWN, expected, actual, f"Which compiler it was cannot be read from {missing}")
    kind, other = ("clang" if "clang" in text else "gcc" for text in (expected, actual))
    wanted, had = (_VERSION.search(_PACKAGED.sub("", text)) for text in (expected, actual))
    if wanted is None or had is None:
        return Check("compiler", Result.UNKNOWN, expected, actual, "The version cannot be read")
    if (kind, wanted[1]) == (other, had[1]):
        return Check("compiler", Result.PASS, expected, actual)
    reason = "Another compiler than the kernel's, or another major version of it"
    fix = f"Install {kind}-{wanted[1]}, then run: knetstatctl build {facts.kernel}"
    return Check("compiler", Result.WARN, expected, actual, reason, fix)


def some(words: Collection[str]) -> str:
    """The first few of a list, and how many more there are; fit for a log."""
    more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
    return ", ".join(names.clean(word, 100) for word in islice(words, _SHOWN)) + more


def rebuild(facts: Target) -> str:
    """The cure for a file that is wrong."""
    return f"Run: knetstatctl build {facts.kernel}"


def _magic(module: Module, facts: Target) -> str:
    its_magic = f"{names.clean(module.name)}: version magic {names.show(module.vermagic)}"
    return f"{its_magic} should be '{facts.kernel}{facts.flags}'" if facts.flags else f"{its_magic} is not for {facts.kernel}"


def _forced(check: str, facts: Target, expected: str, actual: str, why: str) -> Check:
    """What try_to_force_load() answers, for a module that lacks what is to be compared."""
    if _FORCE_LOAD in facts.options:
        reason = f"It loads, unchecked, and taints the kernel: '{why}: kernel tainted.' (CONFIG_MODULE_FORCE_LOAD)"
        return Check(check, Result.WARN, expected, actual, reason, rebuild(facts))
    reason = "Nothing to compare, and this kernel does not load such modules: 'Exec format error'"
    return Check(check, Result.FAIL, expected, actual, reason, rebuild(facts))


def _ignored(module: Module, name: str) -> bool:
    """ignore_undef_symbol(): binutils before 2.37 leave this name behind on x86; nothing refers to it."""
    return module.machine.machine in _X86 and name == "_GLOBAL_OFFSET_TABLE_"


def _imported(module: Module, namespace: str) -> bool:
    """verify_namespace_is_imported(): by MODULE_IMPORT_NS, or named in a `module:` namespace (`*` ends a prefix; 6.16)."""
    if not namespace or namespace in module.import_ns:
        return True
    kind, _, patterns = namespace.partition(":")
    if kind != "module":
        return False
    for pattern in map(names.canonical, patterns.split(",")):
        if module.name == pattern or (pattern.endswith("*") and module.name.startswith(pattern[:-1])):
            return True
    return False
