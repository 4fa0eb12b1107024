# SPDX-License-Identifier: GPL-2.0-or-later
"""By which names a module gets into an initrd: its own, its aliases, and those of the modules that bring it along.

A name brings along the modules that it needs (modules.dep), and the soft dependencies of it and of each of those: `softdep` in
modprobe.d and in the modules themselves, of which the first line for a module counts; `weakdep` too from kmod 33 on.

Sources: libkmod-module.c, __kmod_module_get_probe_list(); dracut-install.c, install_dependent_modules(), which initramfs-tools
calls from 0.146 on; hook-functions of 0.142, manual_add_modules(). Each was asked, with real initrds.
"""

from __future__ import annotations

import enum
import fnmatch
import re
from typing import TYPE_CHECKING, NamedTuple

from knetstatd.core import names
from knetstatd.machine import modprobe_conf
from knetstatd.system import files
from knetstatd.system.once import once

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from knetstatd.formats.modules_dep import Tables
    from knetstatd.machine.modprobe_conf import Rules

_DEEPEST = 100  # soft dependencies of soft dependencies; a chain of three is rare
_LIMIT = 4 << 20  # bytes; modules.alias has 1.2 MB for 4,200 modules


class Sure(enum.IntEnum):
    """How sure it is that a new initrd holds a module."""

    POSSIBLE = 1
    LIKELY = 2
    CERTAIN = 3


class Soft(NamedTuple):
    """One module's soft dependencies. module: may be a pattern.  where: who says so.  weak: modprobe itself loads none."""

    module: str
    others: tuple[str, ...]
    where: str
    weak: bool


@once
def _soft(root: Path, tables: Tables, rules: Rules) -> tuple[Soft, ...]:
    """All soft dependencies, those of modprobe's configuration first."""
    # Without it this kmod knows no weak dependencies.
    weak = files.followed(root, tables.tree / "modules.weakdep").exists()
    told = [(line.module, line.text, line.where, False) for line in rules.softdep]
    told += [(line.module, f"pre: {line.text}", line.where, True) for line in rules.weakdep if weak]
    told += [(*said, False) for said in _table(root, tables, "softdep", "")]
    told += [(*said, True) for said in _table(root, tables, "weakdep", "pre: ") if weak]
    return tuple(Soft(name, others, where, is_weak) for name, text, where, is_weak in told if (others := _softdep(text)))


def _table(root: Path, tables: Tables, kind: str, before: str) -> Iterator[tuple[str, str, str]]:
    for line in _text(root, tables.tree / f"modules.{kind}").splitlines():
        word, _, rest = line.partition(" ")
        name, _, others = rest.partition(" ")
        if word == kind:
            yield modprobe_conf.pattern(name), before + others, "the module itself"


@once
def _text(root: Path, path: Path) -> str:
    return files.text(files.followed(root, path), _LIMIT) or ""


class _Brought(NamedTuple):
    """What a module brings along. listed: whether modules.dep has it.  needed: by that.  soft: by soft dependencies."""

    listed: bool
    needed: tuple[str, ...]
    soft: tuple[str, ...]


class _Chains:
    """What each module of a kernel brings along, found out once for all modules that are asked for."""

    def __init__(self, root: Path, tables: Tables, rules: Rules) -> None:
        self._tables = tables
        self.soft = _soft(root, tables, rules)
        self._known: dict[str, _Brought] = {}
        self._all: dict[str, set[str]] = {}

    def brought(self, name: str) -> _Brought:
        """What a module of that name brings along."""
        if name not in self._known:
            entry = self._tables.entry(name)
            needed = tuple(names.canonical(names.module_of(path.name)) for path in entry.needed) if entry is not None else ()
            first = (
                next((line for line in self.soft if fnmatch.fnmatchcase(one, line.module)), None) for one in (name, *needed)
            )
            soft = tuple(names.canonical(other) for line in first if line is not None for other in line.others)
            self._known[name] = _Brought(entry is not None, needed, soft)
        return self._known[name]

    def _first(self, name: str) -> list[Soft]:
        """The first line of soft dependencies for a module, the only one that counts; none if there is none."""
        return [line for line in self.soft if fnmatch.fnmatchcase(name, line.module)][:1]

    def all_brought(self, name: str) -> set[str]:
        """A name, and all that it brings along by any way."""
        if name not in self._all:
            reached, todo = {name}, [name]
            while todo:
                brought = self.brought(todo.pop())
                new = {*brought.needed, *brought.soft} - reached
                reached |= new
                todo += new
            self._all[name] = reached
        return self._all[name]


_chains = once(_Chains)


class Needs:
    """What leads to one module of a kernel."""

    def __init__(self, root: Path, tables: Tables, rules: Rules, module: str) -> None:
        self._module = module
        self._chains = _chains(root, tables, rules)
        self.soft = self._chains.soft
        self._aliases = [line.module for line in rules.alias if names.canonical(line.text) == module]
        text = _text(root, tables.tree / "modules.alias")
        own = re.findall(rf"(?m)^alias (\S+) {re.escape(module)}$", text) if f" {module}\n" in text else []
        self._aliases += map(modprobe_conf.pattern, own)

    def sure(self, name: str) -> Sure | None:
        """How sure it is that whoever copies or loads `name` has the module too; None if nothing says so."""
        name = names.canonical(name)
        if not self._aliases and self._module not in self._chains.all_brought(name):
            return None
        return self._sure(name, set())

    def _sure(self, name: str, seen: set[str], depth: int = 0) -> Sure | None:
        if name == self._module:
            return Sure.CERTAIN
        if depth > _DEEPEST:
            return Sure.POSSIBLE
        if name in seen:
            return None
        seen.add(name)
        brought = self._chains.brought(name)
        if not brought.listed and any(fnmatch.fnmatchcase(name, alias) for alias in self._aliases):
            return Sure.LIKELY  # with kmod 30, not if the module is blacklisted
        if self._module in brought.needed:
            return Sure.CERTAIN
        answers = [self._sure(other, seen, depth + 1) for other in brought.soft]
        best = max((answer for answer in answers if answer), default=None)
        # Of what is inside the kernel, kmod follows the soft dependencies, and dracut-install does not.
        return min(best, Sure.LIKELY) if best and not brought.listed else best


def ignores_install(root: Path, tables: Tables, rules: Rules, module: str) -> bool:
    """Whether modprobe inserts a module itself although there is an `install` line: it does if it has soft dependencies.

    Of those that are nowhere kmod knows nothing (__kmod_module_get_probe_list(), ignorecmd).
    """
    if modprobe_conf.command(rules, module) is None:
        return False
    needs = Needs(root, tables, rules, module)
    lines = [soft for soft in needs.soft if not soft.weak and fnmatch.fnmatchcase(module, soft.module)]
    others = (names.canonical(other) for line in lines[:1] for other in line.others)
    return any(tables.entry(other) is not None or tables.builtin(other) for other in others)


def _softdep(text: str) -> tuple[str, ...]:
    """The modules of a softdep line, those to load before and after alike."""
    others: list[str] = []
    counts = False
    for word in text.split():
        if word in ("pre:", "post:"):
            counts = True
        elif counts:
            others.append(word)
    return tuple(others)
