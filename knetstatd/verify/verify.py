# SPDX-License-Identifier: GPL-2.0-or-later
"""Will this file load on that kernel? Answered from files alone, for a kernel that need not run.

Rule 1: what cannot be known is UNKNOWN and says what is missing; it is never a pass.
Rule 2: the answer depends on nothing but the files that `inputs` names.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.core.errors import ImageFault, KernelFileError, KnetstatdError, LibraryMissing, ModuleFileError
from knetstatd.core.model import Check, Proof, Result
from knetstatd.formats import module_file, pkcs7
from knetstatd.machine import host as machine
from knetstatd.machine import kmod, module_needs, signature_policy
from knetstatd.system.once import one_look
from knetstatd.verify import (
    compression_check,
    initrd_check,
    install_checks,
    loader_checks,
    module_readings,
    signature_check,
    target_kernel,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from knetstatd.formats.pkcs7 import Certificate, Signature
    from knetstatd.formats.symvers import Export
    from knetstatd.machine.host import Host, Origin
    from knetstatd.machine.signature_policy import Policy
    from knetstatd.verify.target_kernel import Target

_AS_ROOT = "Run this as root"
# By these a module that is wrong for a kernel is told from one of its own.
_COMPARED = (loader_checks.machine, loader_checks.release, loader_checks.vermagic, loader_checks.struct_module)


class _Asked(NamedTuple):
    """A module that was read, and what is known of it before the kernel's exports are.

    checks: done so far.  others: what the modules export that will be loaded before it, by module.  installed: under this name,
    "" for a file that lies anywhere.  needed: the files that modprobe inserts before it.  added: those that did not come with
    the kernel.
    """

    path: Path
    checks: tuple[Check, ...]
    module: module_file.Module
    others: dict[str, Mapping[str, Export]]
    installed: str = ""
    needed: tuple[Path, ...] = ()
    added: tuple[Path, ...] = ()

    @property
    def used(self) -> set[str]:
        """The symbols that it takes from elsewhere."""
        return {loader_checks.LAYOUT, *self.module.undefined, *self.module.weak}


@one_look()
def verify(
    root: Path,
    kernel: str,
    path: Path,
    *,
    others: Iterable[Path] = (),
    facts: Target | None = None,
    host: Host | None = None,
) -> Proof:
    """Whether the module file `path`, wherever it lies, will load on `kernel` of the system under `root`.

    others: files of out-of-tree modules that will be loaded before it, those of the same DKMS package for one.
    facts: of that kernel, if the caller has them.  host: of that machine, likewise. Raises nothing for whatever the files
    contain.
    """
    facts, host = facts or target_kernel.facts(root, kernel), host or machine.facts(root, kernel=kernel)
    return _answers(root, facts, host, [_ask(facts, path, others, host.readings)], {})[0]


@one_look()
def prove(
    root: Path,
    kernel: str,
    modules: Iterable[str],
    facts: Target | None = None,
    host: Host | None = None,
    origins: Mapping[str, Origin | None] | None = None,
) -> list[Proof]:
    """The proofs of installed modules, one for each: which file modprobe takes for it on `kernel`, and whether that will load.

    What the kernel exports is read once for all. facts, host: of that kernel and machine, if the caller has them already.
    origins: what DKMS knows of the modules.
    """
    facts, host = facts or target_kernel.facts(root, kernel), host or machine.facts(root, kernel=kernel)
    known = origins or {}
    return _answers(
        root, facts, host, [_installed(facts, module, known.get(module), host.readings) for module in modules], known
    )


def _installed(facts: Target, module: str, origin: Origin | None, kept: Sequence[Path]) -> _Asked | Proof:
    tables, fix = facts.tables, f"Run: depmod {facts.kernel}"
    entry = tables.entry(module)
    if entry is None:
        path = min(tables.added(module), default=None)
        if _is_denied(tables.tree / "modules.dep"):
            closed = tables.tree / "modules.dep"
            return Proof(os.fspath(closed), (_unreadable(closed, "which file modprobe takes"),))
        if path is None:
            return _missing(facts, module, "no such file")
        why = "modprobe does not find it: " + ("modules.dep lacks it" if tables.depmod_ran else "depmod has not run")
        return _ask(facts, path, (), kept, Check("depmod", Result.FAIL, os.fspath(path), "nothing", why, fix))
    if _is_denied(entry.file.parent, os.X_OK):
        return Proof(os.fspath(entry.file), (_unreadable(entry.file, "whether it is there"),))
    if not os.path.lexists(entry.file):
        why = "modules.dep names a file that is gone"
        return Proof("", (Check("depmod", Result.FAIL, os.fspath(entry.file), "no such file", why, fix),))
    if origin is not None and install_checks.is_replaced(tables, module, entry.file, origin):
        return _missing(facts, module, f"{entry.file}, the kernel's own")
    depmod = Check("depmod", Result.PASS, found=os.fspath(entry.file))
    if not tables.is_indexed(entry):
        why = "modules.dep names it; modules.dep.bin, which modprobe reads, does not"
        depmod = Check("depmod", Result.FAIL, os.fspath(entry.file), "nothing", why, fix)
    asked = _ask(facts, entry.file, entry.added, kept, depmod)
    if isinstance(asked, Proof):
        return asked._replace(needed=tuple(map(os.fspath, entry.needed)))
    return asked._replace(installed=module, needed=entry.needed, added=entry.added)


def _missing(facts: Target, module: str, instead: str) -> Proof:
    file, why = f"{names.canonical(module)}.ko", f"The module is not installed for {facts.kernel}"
    return Proof("", (Check("file", Result.FAIL, file, instead, why, f"Run: knetstatctl build {facts.kernel}"),))


def _is_denied(path: Path, mode: int = os.R_OK) -> bool:
    """Whether the user who asks may not read a path that is there, or not look behind it."""
    try:
        return not os.access(path, mode) and bool(os.stat(path))
    except OSError as e:
        return isinstance(e, PermissionError)


def _unreadable(path: Path, what: str) -> Check:
    """Nothing stands against a module that may not be read; nothing is known of it, either."""
    reason = f"This user may not read {path}: {what} is unknown"
    return Check("file", Result.UNKNOWN, "a kernel module", "", reason, _AS_ROOT)


def _unread(path: Path, error: ModuleFileError, fix: str) -> Check:
    """What stands against a module file that was not read. fix: for one that is damaged."""
    if isinstance(error.__cause__, PermissionError):
        return _unreadable(path, "whether it loads")
    missing = error.__cause__ if isinstance(error.__cause__, LibraryMissing) else None
    fix = f"Run: apt install {missing.package}" if missing else fix
    result = Result.UNKNOWN if missing else Result.FAIL
    return Check("file", result, "a kernel module", error.what, f"It {error.what}", fix)


def _ask(facts: Target, path: Path, others: Iterable[Path], kept: Sequence[Path], *before: Check) -> _Asked | Proof:
    """Does the checks that need the module's own file only. kept: see module_readings.  before: those already done."""
    try:
        module = module_readings.module(path, kept)
    except ModuleFileError as e:
        return Proof(os.fspath(path), (*before, _unread(path, e, f"Run: knetstatctl build {facts.kernel}")))
    done = (
        *before,
        Check("file", Result.PASS, found=" ".join(names.clean(word) for word in (module.name, module.version) if word)),
        loader_checks.machine(module, facts),
        loader_checks.form(module, facts),
        loader_checks.release(module, facts),
        loader_checks.vermagic(module, facts),
        loader_checks.struct_module(module, facts),
        loader_checks.btf(module, facts),
    )
    return _Asked(path, done, module, module_readings.exports((other for other in others if other != path), kept))


def _answers(
    root: Path, facts: Target, host: Host, asked: Iterable[_Asked | Proof], origins: Mapping[str, Origin | None]
) -> list[Proof]:
    """The proofs of what was asked, complete."""
    asked = list(asked)
    open_ones = [one for one in asked if isinstance(one, _Asked)]
    wanted = set().union(*(one.used | one.module.exports.keys() for one in open_ones))
    exported: target_kernel.Exports | Check | None = None
    if open_ones:
        try:
            exported = target_kernel.exports(root, facts, wanted, host.readings)
        except KernelFileError as e:
            name = "image" if isinstance(e, ImageFault) else ""
            exported = Check(name, Result.UNKNOWN, "what the kernel exports", e.where, e.what, e.fix)
    rules = signature_policy.policy(root, facts.kernel, facts.options if facts.configured else None, host.firmware)
    tools = kmod.installed(root)
    proofs, before = [], _Before(root, facts, host, rules)
    for one in asked:
        if isinstance(one, Proof):
            proof = one
        else:
            assert exported is not None
            proof = _proof(facts, one, exported)
            shipped = one.path in facts.tables.shipped(_name(one.path))
            signature = signature_check.check(
                one.module, facts, rules, host.firmware, _intact(one.path, host.readings), shipped=shipped
            )
            more = [compression_check.check(one.path, facts, tools), loader_checks.compiler(one.module, facts), signature]
            more += _placed(root, facts, host, rules, one, origins.get(one.installed), shipped) if one.installed else []
            proof = _linked(proof._replace(checks=(*before.judged(one, proof.checks), *more)))
        proofs.append(proof)
    return proofs


def _linked(proof: Proof) -> Proof:
    """A proof in which an unknown form is no question if the file is the one that was built: its linker gave it that form."""
    if not any(check.name == "contents" and check.result is Result.PASS for check in proof.checks):
        return proof
    reason = "It was not looked at in full; the contents are those that were built"
    settled = {name: Check(name, Result.NOT_APPLICABLE, reason=reason) for name in ("form", "btf")}
    return proof._replace(checks=tuple(settled.get(c.name, c) if c.result is Result.UNKNOWN else c for c in proof.checks))


def _placed(
    root: Path, facts: Target, host: Host, rules: Policy, one: _Asked, origin: Origin | None, shipped: bool
) -> list[Check]:
    """The checks of a module in its place. shipped: it is the kernel's own."""
    name = names.canonical(one.installed)  # modprobe goes by the file's name, which DEST_MODULE_NAME may have made another
    return [
        install_checks.winner(facts.tables, name, one.path, origin),
        install_checks.origin(one.path, origin, facts.kernel),
        install_checks.contents(one.path, origin, facts.kernel, shipped=shipped),
        install_checks.configuration(
            name, one.path, host.rules, rules, one.module.name, one.module.parameters, kernel=facts.kernel,
            inserted=module_needs.ignores_install(root, facts.tables, host.rules, name),
            before=install_checks.loaded_before(root, facts, host.rules, rules, name, one.path),
        ),
        install_checks.boot(name, one.module, host.rules),
        initrd_check.check(root, facts, host, name, one.path, origin.digest if origin is not None else None),
    ]  # fmt: skip


def _intact(path: Path, kept: Sequence[Path]) -> Callable[[Signature, Certificate], bool | None]:
    def intact(signature: Signature, certificate: Certificate) -> bool | None:
        try:
            return pkcs7.is_genuine(signature, certificate, module_readings.read(path, kept).contents_by)
        except (OSError, KnetstatdError, ValueError):
            return None

    return intact


def _proof(facts: Target, one: _Asked, exported: target_kernel.Exports | Check) -> Proof:
    """Does the checks that need the kernel's exports. exported: a check that says why they are not known, if they are not."""
    who = (one.module.srcversion, tuple(map(os.fspath, one.needed)), one.module.build_id, one.module.name)
    if isinstance(exported, Check):
        unknown = (exported._replace(name=name) for name in ([exported.name] if exported.name else ["symbols", "crcs"]))
        return Proof(os.fspath(one.path), (*one.checks, *unknown), *who)
    here = dict(exported.symbols)
    for name, exports in one.others.items():
        for symbol in one.used:
            # An added module wins over the kernel's of the same name; a symbol of anything else is where it always was.
            if symbol in exports and (symbol not in here or here[symbol].module == name):
                here[symbol] = exports[symbol]
            elif symbol in here and here[symbol].module == name:
                del here[symbol]
    came = frozenset(one.others)
    one = one._replace(checks=(*_listed(facts, one, here), *one.checks)) if one.installed else one
    last = (
        *([exported.headers] if exported.headers is not None else []),
        loader_checks.symbols(one.module, facts, here, os.fspath(exported.said_by)),
        loader_checks.exports(one.module, here),
        loader_checks.depends(one.module, facts, here, came),
        loader_checks.crcs(one.module, facts, here, came),
    )
    return Proof(os.fspath(one.path), (*one.checks, *last), *who)


def _listed(facts: Target, one: _Asked, here: Mapping[str, Export]) -> Iterable[Check]:
    """What is wrong with its line in modules.dep: modprobe must load those modules first whose symbols it uses."""
    owners = {here[symbol].module for symbol in one.module.undefined if symbol in here} - {"", one.module.name}
    absent = sorted(name for name in owners - set(map(_name, one.needed)) if facts.tables.has(name))
    if absent:
        why = "Its line in modules.dep is from before it used symbols of these, and modprobe does not load them first"
        yield Check("depmod", Result.FAIL, loader_checks.some(absent), "not in its line", why, f"Run: depmod {facts.kernel}")


def _name(path: Path) -> str:
    return names.canonical(names.module_of(path.name))


class _Before:
    """Whether the modules go in that modprobe inserts before another; each is judged once."""

    def __init__(self, root: Path, facts: Target, host: Host, rules: Policy) -> None:
        self._root, self._facts, self._host, self._rules = root, facts, host, rules
        self._known: dict[Path, Check | None] = {}

    def judged(self, one: _Asked, done: tuple[Check, ...]) -> tuple[Check, ...]:
        """The checks of a module with what stands against those before it in place of a `depends` that found nothing."""
        for path in one.needed:
            if path not in self._known:
                self._known[path] = self._against(path, one.added)
            if (wrong := self._known[path]) is not None:
                how = "does" if wrong.result is Result.FAIL else "may"
                said = f"{_name(path)}, which is loaded first, {how} not go in: {wrong.reason or wrong.found}"
                against = Check("depends", wrong.result, os.fspath(path), wrong.found, said, wrong.fix)
                return tuple(against if c.name == "depends" and c.result is not Result.FAIL else c for c in done)
        return done

    def _against(self, path: Path, added: tuple[Path, ...]) -> Check | None:
        inserted = module_needs.ignores_install(self._root, self._facts.tables, self._host.rules, _name(path))
        out = install_checks.refused(_name(path), path, self._rules)
        out = out or install_checks.kept_out(_name(path), self._host.rules, inserted=inserted)
        if out is not None and out.result is not Result.WARN:
            return out
        if path in added:
            proof = verify(self._root, self._facts.kernel, path, others=added, facts=self._facts, host=self._host)
            return None if proof.holds(linked=True) else proof.worst
        fix = f"Reinstall the package of {self._facts.kernel}'s image"
        try:
            module = module_file.from_path(path)
        except ModuleFileError as e:
            return _unread(path, e, fix)
        compared = (check(module, self._facts) for check in _COMPARED)
        return next((check._replace(fix=fix) for check in compared if check.result is Result.FAIL), None)
